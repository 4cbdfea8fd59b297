"""32-bit programs, for whose calls the tracepoints of single system calls do not fire."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import harness
from tests.live.harness import Net, tracer

MAP_32BIT = 0x40  # arch/x86/include/uapi/asm/mman.h: what is mapped has an address of 32 bits
GETPID, SOCKETCALL = 20, 102  # arch/x86/entry/syscalls/syscall_32.tbl
# The call's own number, and what socketcall(2) has for it (include/uapi/linux/net.h).
CONNECT, LISTEN, ACCEPT4, ACCEPT = (362, 3), (363, 4), (364, 18), (0, 5)
NOBODY = "198.51.100.1"  # RFC 5737: there is no route


class Program:
    """The socket calls of a 32-bit program: by numbers of their own, or all by socketcall(2)."""

    def __init__(self, library: Path, memory: int, multiplexed: bool) -> None:
        self._library = ctypes.CDLL(str(library))
        self._call = self._library.compat_call
        self._memory, self._multiplexed = memory, multiplexed

    def works(self) -> bool:
        """Asked in a child: a kernel that takes no such calls kills."""
        return harness.reap(harness.fork(lambda: self._call(GETPID, 0, 0, 0, 0))) == 0

    def connect(self, client: socket.socket, host: str, port: int) -> None:
        address = struct.pack("=H", client.family) + struct.pack("!H", port)
        address += socket.inet_aton(host) + bytes(8)
        ctypes.memmove(self._memory, address, len(address))
        self._make(CONNECT, client.fileno(), self._memory, len(address))

    def listen(self, server: socket.socket, backlog: int) -> None:
        self._make(LISTEN, server.fileno(), backlog)

    def accept(self, server: socket.socket) -> socket.socket:
        call = ACCEPT if self._multiplexed else ACCEPT4
        return socket.socket(fileno=self._make(call, server.fileno(), 0, 0, 0))

    def listen_by_a_64_bit_call(self, server: socket.socket) -> int:
        """A number that means nothing there."""
        return int(self._library.native_call(LISTEN[0], server.fileno()))

    def _make(self, call: tuple[int, int], *arguments: int) -> int:
        number, code = call
        if self._multiplexed:
            behind = self._memory + 64
            ctypes.memmove(behind, struct.pack(f"={len(arguments)}I", *arguments), 16)
            number, arguments = SOCKETCALL, (code, behind)
        result: int = self._call(number, *arguments, *[0] * (4 - len(arguments)))
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result


Programs = tuple[Program, ...]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """One of each kind."""
    if platform.machine() != "x86_64":
        pytest.skip("int 0x80 is x86's")
    library = tmp_path_factory.mktemp("compat") / "compat.so"
    source = Path(__file__).with_name("compat.c")
    harness.sh(f"gcc -shared -fPIC -o '{library}' '{source}'")
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT
    memory = harness.map_memory(mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags)
    found = tuple(Program(library, memory, multiplexed) for multiplexed in (False, True))
    if not found[0].works():
        pytest.skip("this kernel takes no 32-bit calls")
    yield found
    harness.unmap_memory(memory, mmap.PAGESIZE)


def connect_each_way(program: Program, refused: int, port: int) -> None:
    """One fails at once; one is refused, two succeed, the second of which does not wait."""
    with socket.socket() as client, pytest.raises(OSError):
        program.connect(client, NOBODY, 1005)
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        program.connect(client, "127.0.0.1", refused)
    with socket.socket() as client:
        program.connect(client, "127.0.0.1", port)
    with socket.socket() as client, pytest.raises(BlockingIOError):
        client.setblocking(False)
        program.connect(client, "127.0.0.1", port)


def connects(programs: Programs, *options: str) -> tuple[list[str], dict[str, str]]:
    """Results in the order of the connects, and the ways to see them."""
    refused = harness.refused_port()
    with tracer(*options, "--json") as running, harness.listener() as server:
        port = server.getsockname()[1]
        for program in programs:
            connect_each_way(program, refused, port)
        rows = [e for e in running.events() if e["rport"] in (1005, refused, port)]
    assert {e["pid"] for e in rows} == {os.getpid()}
    return [e["result"] for e in rows], running.ways


LATER = ["ECONNREFUSED", "ok", "ok"]
ALL = ["ENETUNREACH", *LATER]


@pytest.mark.parametrize("tool", ["connect", "connlat"])
def test_connects(tool: str, attach: str, programs: Programs, net: Net) -> None:
    """Each is one row. Before the SYN nothing but --compat sees them by a tracepoint."""
    is_late = attach == "tracepoint"
    with net[0].entered():
        without, _ = connects(programs, tool, "--attach", attach)
        found, ways = connects(programs, tool, "--attach", attach, "--compat")
    assert without == 2 * (LATER if is_late else ALL)
    assert found == 2 * ALL
    assert ("32-bit connect()" in ways) == is_late


def test_a_connect_leaves_nothing_behind(programs: Programs, net: Net) -> None:
    """However it ends. Neither does it hide a later one of the same thread."""
    with net[0].entered(), harness.listener() as server:
        ports = [1005, server.getsockname()[1], 1006]
        only = ",".join(map(str, ports))
        with tracer(
            "connect", "--json", "--attach", "tracepoint", "--compat", "-D", only
        ) as running:
            for program in programs:
                with socket.socket() as client, pytest.raises(OSError):
                    program.connect(client, NOBODY, ports[0])
                with socket.socket() as client:
                    program.connect(client, "127.0.0.1", ports[1])
                harness.until(lambda: not running.entries())
                with socket.socket() as client, pytest.raises(OSError):
                    client.connect((NOBODY, ports[2]))
            rows = running.events()
    assert [e["rport"] for e in rows] == 2 * ports


def accept(program: Program, is_reset: bool) -> tuple[int, int]:
    """A connection that is accepted, and reset by its client or closed; the server's ports."""
    with harness.listener() as server, harness.connect(*server.getsockname()) as client:
        lport, port = harness.ports(client)
        with program.accept(server) as accepted:
            if is_reset:
                harness.reset(client)
                with pytest.raises(ConnectionResetError):
                    accepted.recv(1)
    return port, lport


@pytest.mark.parametrize("tool", ["accept", "tracer"])
@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("compat", [False, True])
def test_accept(tool: str, is_reset: bool, compat: bool, attach: str, programs: Programs) -> None:
    """Without --compat it is seen by a tracepoint when its process closes it, or not any more."""
    options = ["--compat"] if compat else []
    with tracer(tool, "--json", "--attach", attach, *options) as running:
        made = [accept(program, is_reset) for program in programs]
        rows = [e for e in running.events() if (e["lport"], e["rport"]) in made]
    is_late = attach == "tracepoint" and not compat
    assert {e["pid"] for e in rows} == {None if is_reset and is_late else os.getpid()}
    if tool == "accept":
        assert [e["wait_ns"] is None for e in rows] == 2 * [is_late]
    else:
        assert [e["action"] for e in rows] == 2 * ["accept", "close"]


@pytest.mark.parametrize("compat", [False, True])
def test_listen(compat: bool, attach: str, programs: Programs) -> None:
    options = ["--compat"] if compat else []
    with tracer("listen", "--json", "--attach", attach, *options) as running:
        with socket.socket() as one, socket.socket() as two, socket.socket() as native:
            for backlog, program in enumerate(programs, 7):
                program.listen((one, two)[backlog - 7], backlog)
            native.listen(9)
            ports = [each.getsockname()[1] for each in (one, two, native)]
        rows = [e for e in running.events() if e["lport"] in ports]
    found = [(e["lport"], e["backlog"], e["result"]) for e in rows]
    made = list(zip(ports, (7, 8, 9), 3 * ["ok"], strict=True))
    assert found == (made[2:] if attach == "tracepoint" and not compat else made)


def test_the_number_alone_is_no_call_of_a_32_bit_program(programs: Programs) -> None:
    with tracer("listen", "--json", "--attach", "tracepoint", "--compat") as running:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            assert programs[0].listen_by_a_64_bit_call(server) == -errno.ENOSYS
            server.listen(9)
            port = server.getsockname()[1]
        rows = [e for e in running.events() if e["lport"] == port]
    assert [e["result"] for e in rows] == ["ok"]
