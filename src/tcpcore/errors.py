"""Every exception of tcpcore; the message is one line for the user.

TcpcoreError            exit code 1: a failure at run time
├── UsageError          2: an argument makes no sense
│   └── OptionError     2: the value of one option does
├── UnsupportedError    3: this kernel (or host) cannot run the tool
├── PrivilegeError      4: a capability is missing
├── AlarmError          6: what `fail` of a tool asks about is there
├── LostError           5: events were lost, under --fail-on-loss
└── LibbpfError         1: a call into libbpf failed
"""

from __future__ import annotations

import os
from collections.abc import Sequence


class TcpcoreError(Exception):
    """A failure at run time, and the base of all others."""

    exit_code = 1


class UsageError(TcpcoreError):
    """An argument makes no sense; the message names it."""

    exit_code = 2


class OptionError(UsageError):
    """The value of an option makes no sense. name: of the option, as the Python API has it."""

    def __init__(self, name: str, problem: str) -> None:
        self.name, self.problem = name, problem
        super().__init__(name, problem)

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


class UnsupportedError(TcpcoreError):
    """This kernel or host cannot do it; the message has the reason of each refusal."""

    exit_code = 3


class PrivilegeError(TcpcoreError):
    """A capability is missing; the message names it and a command that would work."""

    exit_code = 4


class LostError(TcpcoreError):
    """Events were lost and the caller asked for that to be a failure."""

    exit_code = 5


class AlarmError(TcpcoreError):
    """The trace has found what the caller asked to be told of by a failure."""

    exit_code = 6


class LibbpfError(TcpcoreError):
    """A libbpf call failed.

    call: the C function. errno: positive. log: what libbpf and the verifier printed meanwhile.
    """

    def __init__(self, call: str, errno: int, log: Sequence[str] = ()) -> None:
        self.call = call
        self.errno = errno
        self.log = tuple(log)
        super().__init__(call, errno)

    def __str__(self) -> str:
        said = f": {self.telling}" if self.telling else ""
        return f"{self.call}: {os.strerror(self.errno)}{said}"

    @property
    def telling(self) -> str:
        """The log line that tells the cause: libbpf prints it first, the verifier last."""
        tail = self.verifier
        if tail:
            return tail[-1]
        lines = [line.removeprefix("libbpf: ") for line in self.log if line.startswith("libbpf: ")]
        return lines[0] if lines else ""

    @property
    def verifier(self) -> list[str]:
        """The end of the verifier's log, its statistics left out; empty if there is none."""
        lines = [line for text in self.log for line in text.splitlines()]
        try:
            start = next(i for i, line in enumerate(lines) if "BEGIN PROG LOAD LOG" in line)
        except StopIteration:
            return []
        body = [line for line in lines[start + 1 :] if "END PROG LOAD LOG" not in line]
        noise = ("processed ", "verification time", "stack depth", "libbpf:", "max_states")
        return [line for line in body if line.strip() and not line.startswith(noise)][-8:]
