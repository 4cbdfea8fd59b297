"""BPF maps by file descriptor: look up, update, iterate; keys and values are bytes."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator

from tcpcore.errors import LibbpfError
from tcpcore.loader.ffi import libbpf
from tcpcore.loader.lifetime import Lifetime

_BATCH = 1 << 20  # bytes of keys and values that are read at a time
_FEWEST = 64  # entries of a batch; those of one hash bucket have to fit


class Map:
    """A loaded map; sizes in bytes. bpf(2).

    Every method raises LibbpfError where the kernel refuses, and TcpcoreError once the object that
    the map belongs to is closed: its descriptor may be somebody else's by then.
    """

    def __init__(self, fd: int, key_size: int, value_size: int, life: Lifetime) -> None:
        self.fd, self.key_size, self.value_size = fd, key_size, value_size
        self._life = life

    def get(self, key: bytes) -> bytes | None:
        """The value, or None when the key is not there. Not for per-CPU maps."""
        return self._look_up(key, self.value_size)

    def get_of_each_cpu(self, key: bytes) -> list[bytes]:
        """The values of all possible CPUs; [] when the key is not there. For per-CPU maps alone."""
        size = -(-self.value_size // 8) * 8  # the kernel rounds up: bpf_percpu_array_copy()
        values = self._look_up(key, size * libbpf().libbpf_num_possible_cpus()) or b""
        return [values[i : i + self.value_size] for i in range(0, len(values), size)]

    def _look_up(self, key: bytes, size: int) -> bytes | None:
        value = ctypes.create_string_buffer(size)
        try:
            with self._life:
                libbpf().bpf_map_lookup_elem(self.fd, key, value)
        except LibbpfError as e:
            if e.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def set(self, key: bytes, value: bytes) -> None:
        with self._life:
            libbpf().bpf_map_update_elem(self.fd, key, value, 0)

    def keys(self) -> Iterator[bytes]:
        """Every key once, if nobody deletes meanwhile; else the walk may begin again."""
        key: bytes | None = None
        following = ctypes.create_string_buffer(self.key_size)
        while True:
            try:
                with self._life:
                    libbpf().bpf_map_get_next_key(self.fd, key, following)
            except LibbpfError as e:
                if e.errno == errno.ENOENT:
                    return
                raise
            key = following.raw
            yield key

    def batches(self, value_size: int) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value, in few calls (BPF_MAP_LOOKUP_BATCH, Linux 5.6).

        Keys that come or go meanwhile do not make it begin again, as they do for keys().
        value_size: as system calls see it, that of a per-CPU map being one behind the other.
        """
        most = max(_FEWEST, _BATCH // (self.key_size + value_size))
        keys = ctypes.create_string_buffer(self.key_size * most)
        values = ctypes.create_string_buffer(value_size * most)
        place, before, is_last = ctypes.c_uint32(), None, False
        while not is_last:
            count = ctypes.c_uint32(most)
            try:
                with self._life:
                    libbpf().bpf_map_lookup_batch(
                        self.fd,
                        before,
                        ctypes.byref(place),
                        keys,
                        values,
                        ctypes.byref(count),
                        None,
                    )
            except LibbpfError as e:
                if e.errno != errno.ENOENT:
                    raise
                is_last = True  # ENOENT comes with the last entries
            before = ctypes.byref(place)
            yield from zip(
                _split(keys.raw, self.key_size, count.value),
                _split(values.raw, value_size, count.value),
                strict=True,
            )

    def all_keys(self) -> list[bytes]:
        """Those that are there now; one by one where the kernel takes no batches."""
        try:
            return [key for key, _ in self.batches(self.value_size)]
        except LibbpfError:
            return list(self.keys())


def _split(data: bytes, size: int, count: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, size * count, size))
