"""Reading a whole map, with a kernel that takes no batches."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from tcpcore.errors import LibbpfError
from tcpcore.loader.lifetime import Lifetime
from tcpcore.loader.map import Map


def refused(self: Map, value_size: int) -> Iterator[tuple[bytes, bytes]]:
    yield b"one", b"1"
    raise LibbpfError("bpf_map_lookup_batch", errno.EOPNOTSUPP)


def test_without_batches_keys_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Map, "batches", refused)
    monkeypatch.setattr(Map, "keys", lambda self: iter([b"one", b"two"]))
    assert Map(3, 3, 1, Lifetime()).all_keys() == [b"one", b"two"]


def test_batches_have_the_values_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def batches(self: Map, value_size: int) -> Iterator[tuple[bytes, bytes]]:
        asked.append(value_size)
        yield b"one", b"1"

    monkeypatch.setattr(Map, "batches", batches)
    assert (Map(3, 3, 24, Lifetime()).all_keys(), asked) == ([b"one"], [24])
