"""Bytes that come and go without send() and recv(): pktlat's waits, top's sums."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from tests.live import harness
from tests.live.harness import Tracer, tracer
from tests.live.test_pktlat import Span, check_wait, of, of_read, through_a_pipe, timed, unread

SIZE = 4 * mmap.PAGESIZE
DATA = b"x" * SIZE
Sender = Callable[[socket.socket], object]
Reader = Callable[[socket.socket], object]

# include/uapi/asm-generic/socket.h, include/linux/socket.h, include/uapi/linux/tcp.h
SO_ZEROCOPY, MSG_ZEROCOPY, TCP_ZEROCOPY_RECEIVE = 60, 0x4000000, 35

LIBC = ctypes.CDLL(None, use_errno=True)


def plainly(sender: socket.socket) -> None:
    sender.sendall(DATA)


def from_a_file(sender: socket.socket) -> None:
    with os.fdopen(os.memfd_create("data"), "r+b") as file:
        file.write(DATA)
        file.seek(0)
        assert sender.sendfile(file) == SIZE


def from_own_pages(sender: socket.socket) -> None:
    sender.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    assert sender.send(DATA, MSG_ZEROCOPY) == SIZE


def from_a_pipe(sender: socket.socket) -> None:
    """Whole pages, which belong to the kernel: those can be mapped where they are received."""
    out, into = os.pipe()
    with os.fdopen(out, "rb"), os.fdopen(into, "wb", buffering=0) as pipe:
        pipe.write(DATA)
        assert os.splice(out, sender.fileno(), SIZE) == SIZE


def into_a_buffer(receiver: socket.socket) -> None:
    assert receiver.recv(SIZE, socket.MSG_WAITALL) == DATA


def into_a_pipe(receiver: socket.socket) -> None:
    through_a_pipe(receiver, SIZE)


@contextlib.contextmanager
def pages_of(receiver: socket.socket) -> Iterator[int]:
    """Where its pages are mapped (tcp_mmap())."""
    LIBC.mmap.restype = ctypes.c_void_p
    size = ctypes.c_size_t(SIZE)
    zero = ctypes.c_long(0)
    start = LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, receiver.fileno(), zero)
    assert start not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())
    try:
        yield start
    finally:
        LIBC.munmap(ctypes.c_void_p(start), size)


def by_mapping(receiver: socket.socket) -> None:
    with pages_of(receiver) as start:
        asked = struct.pack("=QIIIi", start, SIZE, 0, 0, 0)  # struct tcp_zerocopy_receive
        buffer = ctypes.create_string_buffer(asked, len(asked))
        length = ctypes.c_uint32(len(asked))
        option = (receiver.fileno(), socket.IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE)
        assert LIBC.getsockopt(*option, buffer, ctypes.byref(length)) == 0
        assert struct.unpack_from("=QI", buffer.raw)[1] == SIZE


# io_uring(7); include/uapi/linux/io_uring.h. On all architectures these calls have these numbers.
IO_URING_SETUP, IO_URING_ENTER, IORING_ENTER_GETEVENTS = 425, 426, 1
IORING_OFF_SQES, IORING_OP_RECV = 0x10000000, 27


def by_io_uring(receiver: socket.socket) -> None:
    """One request, in a ring of its own."""
    params = (ctypes.c_uint32 * 30)()
    number = LIBC.syscall(IO_URING_SETUP, 1, params)
    if number < 0:
        pytest.skip(f"no io_uring here: {os.strerror(ctypes.get_errno())}")
    tail, array, results = params[11], params[16], params[25]
    size = max(array + 4, results + 16 * params[1])
    buffer = ctypes.create_string_buffer(SIZE)
    request = (IORING_OP_RECV, 0, 0, receiver.fileno(), 0, ctypes.addressof(buffer), SIZE)
    with (
        os.fdopen(number, "rb", buffering=0),
        mmap.mmap(number, size) as ring,
        mmap.mmap(number, mmap.PAGESIZE, offset=IORING_OFF_SQES) as requests,
    ):
        struct.pack_into("=BBHiQQI", requests, 0, *request)
        struct.pack_into("=I", ring, array, 0)
        struct.pack_into("=I", ring, tail, 1)
        assert LIBC.syscall(IO_URING_ENTER, number, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) == 1
        _, result = struct.unpack_from("=Qi", ring, results)
    assert (result, buffer.raw) == (SIZE, DATA)


# include/uapi/linux/tls.h: struct tls12_crypto_info_aes_gcm_128, with a key that is no secret.
TCP_ULP, SOL_TLS, TLS_TX, TLS_RX = 31, 282, 1, 2
KEY = struct.pack("=HH36x", 0x0303, 51)
TLS_RECORD = SIZE + 5 + 8 + 16  # header, nonce and tag


def encrypt(connection: socket.socket, way: int) -> None:
    """From now on the kernel does it (kTLS)."""
    try:
        connection.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    except OSError as e:
        pytest.skip(f"no kTLS here: {e}")
    connection.setsockopt(SOL_TLS, way, KEY)


def encrypted(sender: socket.socket) -> None:
    encrypt(sender, TLS_TX)
    sender.sendall(DATA)


def decrypted(receiver: socket.socket) -> None:
    encrypt(receiver, TLS_RX)
    into_a_buffer(receiver)


# How they are sent and read, and how many bytes TCP has.
WAYS: dict[str, tuple[Sender, Reader, int]] = {
    "sendfile": (from_a_file, into_a_buffer, SIZE),
    "MSG_ZEROCOPY": (from_own_pages, into_a_buffer, SIZE),
    "splice": (from_a_pipe, into_a_pipe, SIZE),
    "TCP_ZEROCOPY_RECEIVE": (from_a_pipe, by_mapping, SIZE),
    "io_uring": (plainly, by_io_uring, SIZE),
    "kTLS": (encrypted, decrypted, TLS_RECORD),
}


def sums(running: Tracer) -> dict[int, tuple[int, int]]:
    """By local port: received and sent."""
    return {x["lport"]: (x["rx_bytes"], x["tx_bytes"]) for x in running.events("flow")}


@pytest.mark.parametrize("way", WAYS)
def test_ways(attach: str, way: str) -> None:
    send, read, size = WAYS[way]
    options = ("--json", "-p", str(os.getpid()), "--attach", attach)
    with (
        tracer("pktlat", *options) as pktlat,
        tracer("top", "60", *options) as top,
        harness.pair() as (client, accepted),
    ):
        begin = time.monotonic_ns()
        send(client)
        harness.until(lambda: unread(accepted) == size)
        sent = Span(begin, time.monotonic_ns())
        time.sleep(0.02)
        took = timed(lambda: read(accepted))
        assert unread(accepted) == 0
        lport, rport = harness.ports(accepted)
        rows, found = of(pktlat, accepted), sums(top)
    check_wait(of_read(rows, took), sent, took)
    assert found == {rport: (0, size), lport: (size, 0)}
