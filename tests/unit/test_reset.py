"""reset: the kernel's reason, or ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcpcore.loader import Btf
from tcpcore.model import fields
from tcpcore.tools import reset
from tests.unit.test_kernel import btf_file


@pytest.fixture
def reason(tmp_path: Path) -> fields.Kind:
    (reasons,) = reset.TOOL.enums
    names = {"SK_RST_REASON_NOT_SPECIFIED": 0, "SK_RST_REASON_TCP_FLAGS": 6}
    reasons.look_up(Btf(btf_file(tmp_path / "btf", ("I", "sk_rst_reason", names))))
    return fields.kinds(reset.Event)["reason"]


def test_the_kernels_reason_or_our_own(reason: fields.Kind) -> None:
    shown = [reason.value(raw) for raw in (0, 6, 7, 0x8001)]
    assert shown == [None, "TCP_FLAGS", "7", "no listener"]
