"""The slots of histograms, as BPF works them out."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcpcore.loader import Attached, Settings, attached

ROOT = Path(__file__).parents[2]
OBJECT = "build/tests/histogram.bpf.o"
CALLED = "raw_tp"
SLOTS = 64
EDGES = sorted({0, 1, 3, *(2**n + i for n in range(2, SLOTS) for i in (-1, 0, 1)), 2**64 - 1})


@pytest.fixture(scope="module")
def program() -> Iterator[Attached]:
    # A virtual machine cannot write where the object is: `make setup-test` built it.
    subprocess.run(["make", "-s", OBJECT], cwd=ROOT, check=True)
    settings = Settings(called=(CALLED,))
    with attached(ROOT / OBJECT, [], settings) as program:
        yield program


def counts(program: Attached) -> list[int]:
    image = program.map(".bss").get(bytes(4))
    assert image
    offset = program.file.variables(".bss")["slots"].offset
    return list(struct.unpack_from(f"={SLOTS}Q", image, offset))


def test_every_power_of_two_begins_a_slot(program: Attached) -> None:
    for value in EDGES:
        before = counts(program)
        program.call(CALLED, value)
        more = [now - then for now, then in zip(counts(program), before, strict=True)]
        assert more.index(1) == max(0, value.bit_length() - 1), value
        assert sum(more) == 1
