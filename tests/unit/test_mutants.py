"""What mutation testing draws, and in which order tests see it."""

from __future__ import annotations

import pytest

from mutants.candidates import Place, essence, sources
from mutants.checkout import order, users
from tests.unit.samples import ROOT, TOOLS

SOURCE = '''"""A docstring."""
from typing import Annotated, NamedTuple, cast
from os.path import exists, join
__all__ = ["Event"]
Texts = list[str]
class Event(NamedTuple):
    pid: int
def option(wide: Annotated[bool, print("--wide", "More columns.")] = False) -> int:
    count: int = 1  # a comment
    if wide:
        raise ValueError(f"a number below {count + 1}")
        return 0
    return cast(int, count)
'''


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("A docstring", "Another"),
        ('"""A docstring."""', "pass"),
        ("from typing import Annotated, NamedTuple, cast", "pass"),
        ("exists, join", "join, exists"),
        ('["Event"]', '["Even"]'),
        ("list[str]", "list[int]"),
        ("More columns", "Less columns"),
        ("-> int", "-> str"),
        ("count: int", "count: str"),
        ("a comment", "a remark"),
        ("a number below", "no number below"),
        ("return 0", "return 1"),
        ("cast(int", "cast(str"),
    ],
)
def test_what_it_only_says_is_no_mutant(text: str, other: str) -> None:
    assert text in SOURCE and essence(SOURCE.replace(text, other)) == essence(SOURCE)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("exists, join", "exists, basename"),
        ("pid: int", "pid: str"),
        ("--wide", "--wild"),
        ("= False", "= True"),
        ("if wide", "if not wide"),
        ("= 1", "= 2"),
        ("count + 1", "count - 1"),
        ("return cast", "return not cast"),
    ],
)
def test_what_it_does_is_one(text: str, other: str) -> None:
    assert text in SOURCE and essence(SOURCE.replace(text, other)) != essence(SOURCE)


def test_what_does_not_compile_is_none() -> None:
    assert essence(SOURCE.replace("if wide:", "if wide")) is None


def test_a_seed_is_an_order() -> None:
    place = Place("a.py", 2, tuple(f"{i}\n" for i in range(9)))
    one, again, other = (
        [mutant.source for mutant in place.mutants("x\ny\nz\n", seed)] for seed in ("1", "1", "2")
    )
    assert one == again != other
    assert sorted(one) == sorted(other) == [f"x\n{i}\nz\n" for i in range(9)]


def test_files() -> None:
    assert {"src/tcpcore/loader/ffi.py", "bpf/life.bpf.c", "bpf/lib/sock.bpf.h"} <= {
        *sources(ROOT, None)
    }
    assert {path.split("/")[0] for path in sources(ROOT, "src")} == {"src"}
    assert "bpf/vmlinux.h" not in sources(ROOT, "bpf")


def test_tests_that_concern_a_file_come_first() -> None:
    tests = order(ROOT, "unit", "src/tcpcore/request/filters.py")
    assert tests[0] == "tests/unit/test_filters.py" and len(set(tests)) == len(tests)
    of_names = "src/tcpcore/enrich/dns/names.py"
    assert order(ROOT, "unit", of_names)[0] == "tests/unit/test_dns_names.py"
    assert order(ROOT, "live", of_names)[0] == "tests/live/test_dns.py"
    assert order(ROOT, "unit", "bpf/life.bpf.c") == ["tests/unit/test_contract.py"]
    of_life = order(ROOT, "live", "bpf/life.bpf.c")
    assert of_life[0] == "tests/live/test_life.py" and "tests/live/test_maps.py" in of_life
    assert "tests/live/test_connect.py" not in of_life
    assert {*users(ROOT, "lib/connecting.bpf.h")} == {"connect", "connlat"}
    assert {*users(ROOT, "lib/sock.bpf.h")} == {*TOOLS}
