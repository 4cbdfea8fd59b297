"""ports: sets of ports, what was given back, and the alarm."""

from __future__ import annotations

import pytest

from tcpcore.tools.ports.passes import Given
from tcpcore.tools.ports.places import listed

ONE, TWO = b"1", b"2"


def ports(bits: int) -> list[int]:
    return [port for port in range(65536) if bits >> port & 1]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("\n", []),
        ("8080\n", [8080]),
        ("0,7-9,65535\n", [0, 7, 8, 9, 65535]),
    ],
)
def test_reserved_ports(text: str, numbers: list[int]) -> None:
    assert ports(listed(text)) == numbers


def test_what_is_there_at_first_was_not_taken() -> None:
    given = Given()
    assert given.back({ONE: 5}, {}) == {}
    assert given.back({ONE: 4}, {}) == {ONE: 1}


def test_what_was_taken_and_is_not_there() -> None:
    given = Given()
    given.back({ONE: 5}, {})
    assert given.back({ONE: 6, TWO: 1}, {ONE: 3, TWO: 1}) == {ONE: 2}
    assert given.back({ONE: 6}, {ONE: 2}) == {ONE: 2, TWO: 1}
    assert given.back({ONE: 6}, {}) == {}


def test_a_destination_that_comes_and_goes_between_two_passes() -> None:
    given = Given()
    given.back({}, {})
    assert given.back({}, {ONE: 3}) == {ONE: 3}


def test_a_port_that_is_counted_in_the_next_report() -> None:
    """The pass has seen it, and its connect is counted only afterwards."""
    given = Given()
    given.back({}, {})
    assert given.back({ONE: 1}, {}) == {}
    assert given.back({ONE: 1}, {ONE: 1}) == {}
    assert given.back({}, {}) == {ONE: 1}


def test_a_port_that_the_next_pass_sees() -> None:
    """It counts as given back at first: the next one is short of it."""
    given = Given()
    given.back({}, {})
    assert given.back({}, {ONE: 1}) == {ONE: 1}
    assert given.back({ONE: 1}, {}) == {}
    assert given.back({}, {}) == {}
