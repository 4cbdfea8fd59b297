"""`make demo`: tcpcore on real traffic, for a quarter of a minute.

Four kinds of clients connect over the loopback device, IPv4 and IPv6, in threads that are named
after what becomes of them. The tracer is the real command, its output goes to the terminal.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

TCPCORE = Path(sys.executable).with_name("tcpcore")
HOSTS = ("127.0.0.1", "::1")
LOOPBACK = ("--raddr", "127.0.0.0/8,::1")
TRACES = (
    ("connlat", "--duration", "10", *LOOPBACK),
    ("states", "--wide", "--duration", "3", *LOOPBACK),
)
LEGEND = """\
Clients on 127.0.0.1 and ::1, by name:
  fast        connects, exchanges a few bytes with the task `server`, closes
  slow        finds the listener's queue full: its SYN is dropped, the one a second later is not
  refused     asks for a port on which nobody listens
  unanswered  finds the queue full for good, and gives up after two seconds (TCP_USER_TIMEOUT)
"""

Server = socket.socket


def new_socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)


def bound(host: str) -> Server:
    """A port of our own on which nobody listens."""
    server = new_socket(host)
    server.bind((host, 0))
    return server


def answering(host: str) -> Server:
    """A listener with a thread that accepts and answers."""
    server = bound(host)
    server.listen()
    start_thread("server", partial(answer, server))
    return server


def full(host: str) -> Server:
    """A listener whose queue has room for one connection, and holds it; the kernel drops SYNs."""
    server = bound(host)
    server.listen(0)
    with new_socket(host) as first:
        first.connect(server.getsockname())
    return server


def answer(server: Server) -> None:
    while True:
        client, _ = server.accept()
        with client:
            client.sendall(client.recv(64))
            client.recv(1)  # until the client closes


def fast(client: socket.socket, server: Server) -> None:
    client.connect(server.getsockname())
    client.sendall(b"hello")
    client.recv(64)
    time.sleep(0.1)


def slow(client: socket.socket, server: Server) -> None:
    """Half a second after the first SYN there is room; the client's connection then takes it."""
    client.setblocking(False)
    client.connect_ex(server.getsockname())
    time.sleep(0.5)
    server.accept()[0].close()
    select.select([], [client], [], 10)


def refused(client: socket.socket, server: Server) -> None:
    with contextlib.suppress(ConnectionRefusedError):
        client.connect(server.getsockname())


def unanswered(client: socket.socket, server: Server) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2000)
    with contextlib.suppress(TimeoutError):
        client.connect(server.getsockname())


@dataclass(frozen=True)
class Scene:
    """What happens again and again: `act` on a new socket, then a pause in seconds."""

    act: Callable[[socket.socket, Server], None]
    open: Callable[[str], Server]
    pause: float

    def play(self, host: str, server: Server) -> None:
        time.sleep(self.pause / len(HOSTS) * HOSTS.index(host))
        while True:
            with new_socket(host) as client:
                self.act(client, server)
            time.sleep(self.pause)


SCENES = (
    Scene(fast, answering, 2.0),
    Scene(slow, full, 2.0),
    Scene(refused, bound, 3.0),
    Scene(unanswered, full, 1.5),
)


def start_thread(name: str, work: Callable[[], None]) -> None:
    """A thread that ends with the process, as do its sockets; `name` is what tcpcore shows."""

    def run() -> None:
        Path("/proc/thread-self/comm").write_text(name)
        work()

    threading.Thread(target=run, name=name, daemon=True).start()


def start_traffic() -> None:
    for scene in SCENES:
        for host in filter(is_here, HOSTS):
            start_thread(scene.act.__name__, partial(scene.play, host, scene.open(host)))


def is_here(host: str) -> bool:
    """Whether this host has the address: some have no IPv6."""
    try:
        bound(host).close()
    except OSError:
        return False
    return True


def trace(*arguments: str) -> int:
    """Run tcpcore on this terminal; its exit code."""
    print(f"\n$ tcpcore {' '.join(arguments)}", flush=True)
    # Without sudo, tcpcore itself tells what it lacks.
    sudo = ["sudo"] if os.geteuid() != 0 and shutil.which("sudo") else []
    with subprocess.Popen([*sudo, str(TCPCORE), *arguments]) as child:
        try:
            return child.wait()
        finally:
            end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """Ctrl-C reaches tcpcore too, which then ends by itself; on anything else we end it."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(1)
        return
    with contextlib.suppress(PermissionError):  # sudo's; it ends after --duration
        child.terminate()


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print(LEGEND, end="")
    try:
        start_traffic()
        for arguments in TRACES:
            code = trace(*arguments)
            if code:
                return code
    except OSError as e:
        print(f"demo: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\nThat was tcpcore. `tcpcore --help` has the tools, the README the rest.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
