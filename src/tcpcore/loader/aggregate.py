"""Counters that BPF programs add to, taken out for each report: bpf/lib/aggregate.bpf.h."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Collection, Iterable, Iterator

from tcpcore.errors import LibbpfError
from tcpcore.loader import ffi
from tcpcore.loader.ffi import libbpf
from tcpcore.loader.lifetime import Lifetime
from tcpcore.loader.map import Map

Counters = dict[bytes, tuple[int, ...]]
"""By key: for each counter of the value the sum of all CPUs. Keys with zeros alone are left out."""

_ONLY = bytes(4)  # the key of the array's one place
_MAP_TYPE_PERCPU_ARRAY = 6  # include/uapi/linux/bpf.h
_INDEX_SIZE = 4  # of an array's key; that of a hash is longer (aggregate.bpf.h)


def maps(name: str) -> tuple[str, str]:
    """The two maps that take turns in the aggregate `name`; the first one has the first turn."""
    return f"{name}_one", f"{name}_two"


def names(of_maps: Collection[str]) -> list[str]:
    """The aggregates among the maps of an object."""
    return [name for name in of_maps if set(maps(name)) <= set(of_maps)]


def make_room(keys: int, place: ffi.MapHandle, among: Iterable[ffi.MapHandle]) -> None:
    """Before the load: room for so many keys, and for the rest. place, among: of one aggregate.

    Without other keys an array of one place does. The key of zeros begins with its index, and
    programs find it in half of the time, as nothing is hashed and compared.
    """
    if keys:
        for each in among:
            libbpf().bpf_map__set_max_entries(each, keys + 1)
        return
    pattern = libbpf().bpf_map__inner_map(place)
    for each in (pattern, *among):
        libbpf().bpf_map__set_type(each, _MAP_TYPE_PERCPU_ARRAY)
        libbpf().bpf_map__set_key_size(each, _INDEX_SIZE)


def leave_out(of: Iterable[ffi.MapHandle]) -> None:
    """Before the load: the maps of an aggregate that this run does not count in."""
    for each in of:
        libbpf().bpf_map__set_autocreate(each, False)


class Aggregate:
    """Each counter of BPF's is in exactly one of the reports that take() gives.

    place: the array that has the map which programs add to. used: that map. spare: its stand-in.

    Programs must not sleep: the kernel does not wait for those that do (see take()).
    """

    def __init__(self, place: Map, used: Map, spare: Map, life: Lifetime) -> None:
        self._place, self._used, self._spare, self._life = place, used, spare, life
        _keep_place_for_rest(used)

    def take(self) -> Counters:
        """What was counted since the last call.

        bpf(2) returns from replacing a map in an array of maps when all programs that found the
        old one there have ended: maybe_wait_bpf_programs(), kernel/bpf/syscall.c, since Linux 4.20
        (1ae80cf31938). So nobody adds to it any more while it is read and emptied.

        Works with the rights that reading a map takes, as both maps are there already.
        Raises LibbpfError where the kernel refuses.
        """
        with self._life:
            _keep_place_for_rest(self._spare)
            self._place.set(_ONLY, struct.pack("=I", self._spare.fd))
            self._used, self._spare = self._spare, self._used
            return _take_all(self._spare)


def _keep_place_for_rest(of: Map) -> None:
    """The key of zeros has a place before any other key can take it."""
    of.set(bytes(of.key_size), bytes(_value_size(of)))


def _is_array(of: Map) -> bool:
    return of.key_size == _INDEX_SIZE


def _value_size(of: Map) -> int:
    """Of a value as system calls see it: that of each possible CPU, one behind the other."""
    cpus: int = libbpf().libbpf_num_possible_cpus()
    return of.value_size * cpus


def _take_all(of: Map) -> Counters:
    """Read first, whole: what was read stays in the map until the kernel takes it out below."""
    try:
        entries = dict(of.batches(_value_size(of)))
    except LibbpfError:  # whatever it is: if it is more than that, the plain calls say so as well
        entries = dict(_read_each(of))
    _delete(of, list(entries))
    sums = ((key, _sums(values, of.value_size // 8)) for key, values in entries.items())
    return {key: counters for key, counters in sums if any(counters)}


def _sums(values: bytes, counters: int) -> tuple[int, ...]:
    numbers = struct.unpack(f"={len(values) // 8}Q", values)
    return tuple(sum(numbers[i::counters]) for i in range(counters))


def _read_each(of: Map) -> Iterator[tuple[bytes, bytes]]:
    for key in list(of.keys()):
        yield key, b"".join(of.get_of_each_cpu(key))


def _delete(of: Map, keys: list[bytes]) -> None:
    if _is_array(of):
        return  # its place is emptied before its next turn
    try:
        count = ctypes.c_uint32(len(keys))
        libbpf().bpf_map_delete_batch(of.fd, b"".join(keys), ctypes.byref(count), None)
    except LibbpfError:
        for key in list(of.keys()):  # some may be gone
            libbpf().bpf_map_delete_elem(of.fd, key)
