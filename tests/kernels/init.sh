#!/bin/busybox sh
# The first process of a machine. It puts a writable layer over the host's files, mounts what a
# distribution mounts, runs the command of this boot and switches the machine off. Should a step
# fail, the kernel panics for want of a first process, and qemu ends at once.
set -eu
export PATH=/bin
/bin/busybox --install -s /bin
. /settings # RELEASE, IMAGE, SHARE

share_9p() { # TAG FOLDER OPTIONS
	mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2"
}

mkdir -p /proc /sys /dev /host /layer /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "$module"; done </modules/order

# All of the host's files are there and all may be written to; what is written stays in memory.
share_9p host /host ro,cache=loose
mount -t tmpfs -o size=75% tmpfs /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /root

# The image is a part of the host's files: to the tools inside it has to lie where they look.
mkdir -p "/root/lib/modules/$RELEASE" /root/boot
mount --bind "/root$IMAGE/lib/modules/$RELEASE" "/root/lib/modules/$RELEASE"
cp "/root$IMAGE/config" "/root/boot/config-$RELEASE"

for folder in proc sys dev; do mount --move "/$folder" "/root/$folder"; done
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm
mount -t tmpfs tmpfs /root/run
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
mount -t bpf bpf /root/sys/fs/bpf
mount -t debugfs debugfs /root/sys/kernel/debug
mount -t tracefs tracefs /root/sys/kernel/tracing
ln -s /proc/self/fd /root/dev/fd
ip link set lo up

# The folder for results has the same path on both sides.
mkdir -p "/root$SHARE"
share_9p share "/root$SHARE" rw
cp /command /root/run/command
exec switch_root /root /bin/busybox sh /run/command
