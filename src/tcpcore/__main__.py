"""The command, from its first moment: the imports take most of a start."""

from __future__ import annotations

import signal


def main() -> None:
    # As long as nothing is traced, Ctrl-C has nothing to finish; and nobody wants a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tcpcore import cli

    cli.main()


if __name__ == "__main__":
    main()
