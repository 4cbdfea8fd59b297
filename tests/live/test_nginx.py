"""top and life beside a real server, which keeps an account of its own."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import harness
from tests.live.harness import Event, tracer

ROOT = Path(__file__).parents[2]
# `make setup-test` unpacks it.
NGINX = shutil.which("nginx", path=f"{ROOT}/build/nginx/usr/sbin:{os.environ['PATH']}")
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    log_format bytes '$remote_port $request_length $bytes_sent';
    access_log {folder}/log bytes;
    sendfile on;
    {temporary}
    server {{ listen 127.0.0.1:{port}; listen [::1]:{port}; root {folder}; }}
}}
"""
# By name; nobody has the last one.
SIZES = {"empty": 0, "one": 1, "some": 1000, "many": 100_000, "large": 5_000_000}
PATHS = [*SIZES, "missing"]
HOSTS = ("127.0.0.1", "::1")
SESSIONS = len(HOSTS) * (1 + len(PATHS))

Bytes = dict[int, tuple[int, int]]  # by the client's port: received and sent


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[tuple[int, int]]:
    """Its pid and port."""
    assert NGINX
    port = harness.refused_port()
    temporary = " ".join(f"{name}_temp_path {folder}/{name};" for name in TEMPORARY)
    path = folder / "nginx.conf"
    path.write_text(CONFIGURATION.format(folder=folder, port=port, temporary=temporary))
    command = ["setpriv", "--pdeathsig", "KILL", NGINX, "-p", str(folder), "-c", str(path)]
    with subprocess.Popen(command) as server:
        try:
            harness.until(lambda: answers(port) or server.poll() is not None)
            yield server.pid, port
        finally:
            server.terminate()


def answers(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError):
        harness.connect("127.0.0.1", port).close()
        return True
    return False


def fetch(client: http.client.HTTPConnection, path: str, **headers: str) -> None:
    client.request("GET", f"/{path}", headers=headers)
    answer = client.getresponse()
    content = answer.read()
    assert answer.status == (200 if path in SIZES else 404)
    assert len(content) == SIZES.get(path, len(content))


def fetch_all(port: int) -> None:
    """Several with one connection, and each with one of its own."""
    for host in HOSTS:
        with contextlib.closing(http.client.HTTPConnection(host, port)) as client:
            for path in PATHS:
                fetch(client, path)
        for path in PATHS:
            with contextlib.closing(http.client.HTTPConnection(host, port)) as client:
                fetch(client, path, Connection="close")


def logged(path: Path) -> Bytes:
    found: Bytes = {}
    for line in path.read_text().splitlines():
        port, received, sent = map(int, line.split())
        before = found.get(port, (0, 0))
        found[port] = before[0] + received, before[1] + sent
    return found


def by_port(rows: list[Event]) -> Bytes:
    return {x["rport"]: (x["rx_bytes"], x["tx_bytes"]) for x in rows}


@pytest.mark.skipif(not NGINX, reason="no nginx here")
@pytest.mark.any_kernel
def test_the_bytes_of_its_log(tmp_path: Path) -> None:
    for name, size in SIZES.items():
        (tmp_path / name).write_bytes(bytes(size))
    with nginx(tmp_path) as (pid, port):
        options = ("--json", "-p", str(pid))
        with tracer("top", "60", *options) as top, tracer("life", *options) as life:
            fetch_all(port)
            harness.until(lambda: len(life.out.lines) == SESSIONS)  # it ends some after its client
            flows, sessions = top.events("flow"), life.events()
    log = logged(tmp_path / "log")
    assert len(log) == len(flows) == len(sessions) == SESSIONS
    assert by_port(flows) == by_port(sessions) == log
