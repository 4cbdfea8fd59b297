"""tcpcore: trace TCP with precompiled eBPF programs; the library behind the `tcpcore` command.

with tcpcore.trace("connlat", min_ms=10) as events:
    for event in events:
        print(event.comm, event.raddr, event.result)
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["TcpcoreError", "__version__", "trace"]

TYPE_CHECKING = False  # as typing has it, whose import takes longer than all that is here
if TYPE_CHECKING:
    from typing import Any

    from tcpcore._typed import trace
    from tcpcore.errors import TcpcoreError


def __getattr__(name: str) -> Any:
    """`import tcpcore` alone loads nothing."""
    if name == "trace":
        from tcpcore.api import trace

        return trace
    if name == "TcpcoreError":
        from tcpcore.errors import TcpcoreError

        return TcpcoreError
    raise AttributeError(name)
