"""BPF maps by file descriptor: look up, update, iterate; keys and values are bytes."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator

from tcpcore.errors import LibbpfError
from tcpcore.loader.ffi import libbpf
from tcpcore.loader.lifetime import Lifetime


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
