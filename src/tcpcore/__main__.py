"""The command, from its first moment: the imports take most of a start."""

from __future__ import annotations

import sys


def main() -> None:
    """Until something is traced, Ctrl-C has nothing to finish; and nobody wants a traceback."""
    # For the next import alone, which takes a tenth of a start.
    sys.excepthook = _quiet
    import gc
    import signal

    # What a start makes stays. run() enables the collector again.
    gc.disable()

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tcpcore import cli

    cli.main()


def _quiet(kind: type[BaseException], error: BaseException, trace: object) -> None:
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, error.__traceback__)


if __name__ == "__main__":
    main()
