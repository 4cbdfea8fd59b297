"""Boot a kernel in an emulated machine which sees the host's files, and run one command in it."""

from __future__ import annotations

import lzma
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from .images import Image

BUSYBOX = Path("/bin/busybox")
MEMORY = "2G"
PROCESSORS = 2
# Emulated processors sometimes stand still, or fall over each other's clocks, before the kernel is
# up. That is seen in seconds, and the next boot is fine.
BOOTS = 3
BOOT_LIMIT = 240.0
# So they do later on, where code is patched under them. No test is silent for so long.
SILENCE_LIMIT = 420.0

# To reach the host's files takes these; anything else the guest loads itself from there.
_MODULES = ["virtio_pci", "9p", "9pnet_virtio", "overlay"]
# Emulation is slow, and a busy host makes it stand still: that is no fault of the guest's kernel.
# What guards against speculation takes a tenth of the time, and an emulator does not speculate.
_BOOT_ARGUMENTS = ["console=ttyS0", "panic=-1", "nowatchdog", "rcupdate.rcu_cpu_stall_suppress=1"]
_BOOT_ARGUMENTS += ["mitigations=off"]
_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "dumb",
}

_COMPLAINT = re.compile(
    r"(?<!end )Kernel panic|\bOops\b|\bBUG:|\bWARNING:|general protection fault"
)
_COMPLAINT_LINES = 60
_ABOUT_US = re.compile(r"Kernel panic|bpf|tcpcore|pytest|python", re.IGNORECASE)


@dataclass(frozen=True)
class Result:
    """What came of a command in a machine."""

    exit_code: int | None
    """None when the command did not come to its end: a crash of the guest, or the time limit."""
    output: str
    console: str
    timed_out: bool
    """It came to no end in time, or stood still (SILENCE_LIMIT)."""
    seconds: float
    """How long the machine ran, its boot included."""

    @property
    def complaints(self) -> list[str]:
        """The kernel's warnings and crashes which have to do with BPF or with the tests."""
        return _complaints(self.console.splitlines())


def run(
    image: Image,
    command: Sequence[str],
    share: Path,
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    folder: Path = Path("/"),
    boot_arguments: Sequence[str] = (),
) -> Result:
    """Boot an image and run a command in it, in a folder and with an environment of its own.

    The guest sees all of the host's files, writes to them only in its own memory, and has no
    network but loopback. The share is the one folder which both sides write to, under the same
    path; output.txt and console.log in it can be looked at while the machine runs.
    """
    share = share.resolve()
    share.mkdir(parents=True, exist_ok=True)
    results = [share / name for name in ("exit-code", "output.txt", "console.log")]
    for file in results:
        file.unlink(missing_ok=True)
    started = time.monotonic()
    # In the share: were we killed, there would be nothing to clear away anywhere else.
    with TemporaryDirectory(prefix=".machine-", dir=share) as scratch:
        script = _script(command, share, folder, {**_ENVIRONMENT, **(env or {})})
        initramfs = _initramfs(image, share, script, Path(scratch))
        machine = _qemu(image, initramfs, share, boot_arguments)
        for _ in range(BOOTS):
            ended = _emulate(machine, results[-1], timeout, results[1])
            if results[1].exists():
                break
    exit_code, output, console = map(_read, results)
    return Result(
        exit_code=int(exit_code) if exit_code.strip() else None,
        output=output,
        console=console,
        timed_out=not ended,
        seconds=time.monotonic() - started,
    )


def _script(command: Sequence[str], share: Path, folder: Path, env: Mapping[str, str]) -> str:
    """Return what the guest does once its files are there."""
    settings = [f"{name}={value}" for name, value in env.items()]
    return "\n".join(
        [
            f"cd {shlex.quote(str(share))}",
            # By env: the shell of busybox prefers its own ip, modprobe ... to the real ones.
            shlex.join(["/usr/bin/env", "-i", "-C", str(folder), *settings, *command])
            + " >output.txt 2>&1 </dev/null",
            "echo $? >exit-code",
            "sync",
            "poweroff -f",
            "",
        ]
    )


def _initramfs(image: Image, share: Path, script: str, scratch: Path) -> Path:
    """Pack what the kernel needs to get at the host's files."""
    root = scratch / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/busybox").write_bytes(BUSYBOX.read_bytes())
    (root / "bin/busybox").chmod(0o755)
    (root / "init").write_bytes(Path(__file__).with_name("init.sh").read_bytes())
    (root / "init").chmod(0o755)
    (root / "command").write_text(script)
    settings = {"RELEASE": image.release, "IMAGE": image.folder.resolve(), "SHARE": share}
    (root / "settings").write_text(
        "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in settings.items())
    )
    _add_modules(image, root / "modules")
    names = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
    archive = subprocess.run(
        [BUSYBOX, "cpio", "-o", "-H", "newc"],
        cwd=root,
        input=names.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    initramfs = scratch / "initramfs"
    initramfs.write_bytes(archive.stdout)
    return initramfs


def _add_modules(image: Image, folder: Path) -> None:
    """Unpack the modules for the host's files into a folder, next to the order to load them in."""
    folder.mkdir()
    names = []
    for path in _module_files(image):
        content = path.read_bytes()
        if path.suffix == ".xz":
            path, content = path.with_suffix(""), lzma.decompress(content)
        (folder / path.name).write_bytes(content)
        names.append(path.name)
    (folder / "order").write_text("".join(f"/modules/{name}\n" for name in names))


def _module_files(image: Image) -> list[Path]:
    """Return the files of the needed modules, each one after those it depends on."""
    place = ["-C", "/dev/null", "-d", str(image.folder), "-S", image.release]
    listed = subprocess.run(
        ["modprobe", *place, "--show-depends", "--all", *_MODULES],
        env={**os.environ, "PATH": _ENVIRONMENT["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    loads = [line for line in listed.stdout.splitlines() if line.startswith("insmod ")]
    return list(dict.fromkeys(Path(line.removeprefix("insmod ").strip()) for line in loads))


def _qemu(
    image: Image, initramfs: Path, share: Path, boot_arguments: Sequence[str]
) -> list[str | Path]:
    return [
        # Whatever ends us, qemu does not stay behind.
        *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-m", MEMORY, "-smp", str(PROCESSORS), "-serial", "stdio"),
        *_folder_device("host", Path("/"), "on"),
        *_folder_device("share", share, "off"),
        *("-kernel", image.vmlinuz, "-initrd", initramfs),
        *("-append", " ".join([*_BOOT_ARGUMENTS, *boot_arguments])),
    ]


def _folder_device(tag: str, folder: Path, readonly: str) -> list[str]:
    path = str(folder).replace(",", ",,")
    backend = f"local,id={tag},path={path},security_model=none,multidevs=remap,readonly={readonly}"
    return ["-fsdev", backend, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def _emulate(command: Sequence[str | Path], console: Path, timeout: float, output: Path) -> bool:
    """Run a machine to its end, or to a limit, and return whether it ended by itself.

    output: grows once it is up and as long as it makes progress.
    """
    with console.open("wb") as log:
        machine = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return _ends(machine, BOOT_LIMIT) or (
                output.exists() and _works(machine, timeout, output)
            )
        finally:
            if machine.poll() is None:
                os.killpg(machine.pid, signal.SIGKILL)
                machine.wait()


def _works(machine: subprocess.Popen[bytes], timeout: float, output: Path) -> bool:
    """Whether it ends in time and is never silent for too long."""
    limit, size = time.monotonic() + timeout, -1
    while time.monotonic() < limit and size != (size := output.stat().st_size):
        if _ends(machine, SILENCE_LIMIT):
            return True
    return False


def _ends(machine: subprocess.Popen[bytes], timeout: float) -> bool:
    try:
        machine.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def _read(file: Path) -> str:
    """Return the text of a file which a crash may have cut short or prevented."""
    return file.read_text(errors="replace") if file.exists() else ""


def _complaints(lines: Sequence[str]) -> list[str]:
    """Return the reports in a console log, each from its first line to the next one's."""
    starts = [number for number, line in enumerate(lines) if _COMPLAINT.search(line)]
    found = []
    for start, following in pairwise([*starts, len(lines)]):
        report = "\n".join(lines[start : min(following, start + _COMPLAINT_LINES)])
        if _ABOUT_US.search(report):
            found.append(report)
    return found
