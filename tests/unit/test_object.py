"""What is written into an object between open and load; the load itself needs privilege."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpcore.errors import TcpcoreError
from tcpcore.loader import ObjectFile
from tcpcore.loader.ffi import libbpf
from tcpcore.loader.object import _rodata_image, _write_rodata, encode

Built = tuple[str, ObjectFile]


@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_numbers_have_the_width_of_their_variable(width: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(0, (1 << 8 * width) - 1))
    encoded = encode("x", value, width)
    assert len(encoded) == width
    assert int.from_bytes(encoded, sys.byteorder) == value


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_numbers_out_of_range(width: int) -> None:
    for value in (-1, 1 << 8 * width):
        with pytest.raises(TcpcoreError, match=f"'x' is {8 * width} bits wide: {value} does not"):
            encode("x", value, width)


def test_flags_are_numbers() -> None:
    assert encode("x", True, 1) == b"\1"
    assert encode("x", False, 1) == b"\0"


def test_bytes_fill_an_array_from_its_start() -> None:
    assert encode("x", b"ab", 4) == b"ab\0\0"
    assert encode("x", b"abcd", 4) == b"abcd"
    with pytest.raises(TcpcoreError, match="'x' has 4 bytes, not 5"):
        encode("x", b"abcde", 4)


def test_a_number_for_an_array() -> None:
    with pytest.raises(TcpcoreError, match="'x' is 256 bytes wide: give it bytes"):
        encode("x", 1, 256)


@pytest.fixture
def handle(built: Built) -> int:
    """Opened, never loaded. Never closed either: the process is a short one."""
    return int(libbpf().bpf_object__open_file(bytes(built[1].path), None))


def test_values_stand_where_the_symbols_say(built: Built, handle: int) -> None:
    import ctypes

    file = built[1]
    _write_rodata(handle, file, {"target_family": 10, "target_pid": b"\1\2\3\4\5"})
    address, size = _rodata_image(handle)
    image = ctypes.string_at(address, size)
    for name, value in {"target_family": b"\x0a\0", "target_pid": b"\1\2\3\4\5\0"}.items():
        offset = file.variables(".rodata")[name].offset
        assert image[offset : offset + len(value)] == value
    changed = sum(byte != 0 for byte in image)
    assert changed <= 6 + sum(
        s.size for n, s in file.variables(".rodata").items() if not n.startswith("targ")
    )


def test_an_unknown_variable_lists_the_known(built: Built, handle: int) -> None:
    file = built[1]
    with pytest.raises(TcpcoreError) as e:
        _write_rodata(handle, file, {"target_famliy": 10})
    assert file.path.name in str(e.value)
    assert "'target_famliy'" in str(e.value)
    for name in file.variables(".rodata"):
        assert name in str(e.value)
