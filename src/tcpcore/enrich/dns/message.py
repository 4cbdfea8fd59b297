"""What a DNS message answers (RFC 1035, 4)."""

from __future__ import annotations

from dataclasses import dataclass, field

from tcpcore.errors import OptionError
from tcpcore.model import net

try:
    from dnslib import CLASS, QR, QTYPE, RCODE, DNSHeader, DNSQuestion
    from dnslib.label import DNSBuffer, DNSLabel
except ImportError:
    raise OptionError("dns", "needs dnslib: pip install 'tcpcore[dns]'") from None

_MAX_CHAIN = 16  # aliases in one message; resolvers follow fewer
_MAX_NAME = 253  # RFC 1035, 2.3.4: 255 bytes on the wire, two of which are not text


@dataclass
class Answer:
    """addresses: 16 bytes each, IPv4 as v4-mapped. aliases: the targets of the CNAME records."""

    question: str
    addresses: list[bytes] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)


def parse(message: bytes) -> Answer | None:
    """The answer in a response without error to one question; None for every other message.

    Where a message is cut short, as in the first fragment of a datagram, the records before the cut
    count.
    """
    buffer, answer = DNSBuffer(message), None
    try:
        header = DNSHeader.parse(buffer)
        kind = header.get_opcode(), header.get_rcode(), header.q
        if header.qr == QR.RESPONSE and kind == (0, RCODE.NOERROR, 1):
            answer = Answer(_text(DNSQuestion.parse(buffer).qname))
            for _ in range(header.a):
                _read_record(buffer, answer)
    # Anybody may have sent these bytes, and dnslib raises more than its own errors for them:
    # RecursionError where a name's pointers lead to ever more pointers, for one.
    except Exception:
        pass
    return answer


def _read_record(buffer: DNSBuffer, answer: Answer) -> None:
    """Add one record of the answer section (RFC 1035, 4.1.3; AAAA: RFC 3596)."""
    _skip_name(buffer)
    kind, family, _, length = buffer.unpack("!HHIH")
    end = buffer.offset + length
    match family, kind, length:
        case CLASS.IN, QTYPE.A, 4:
            answer.addresses.append(net.V4MAPPED + buffer.get(length))
        case CLASS.IN, QTYPE.AAAA, 16:
            answer.addresses.append(buffer.get(length))
        case CLASS.IN, QTYPE.CNAME, _ if len(answer.aliases) < _MAX_CHAIN:
            answer.aliases.append(_text(buffer.decode_name()))
    buffer.offset = end


def _skip_name(buffer: DNSBuffer) -> None:
    """Skip the name that a record belongs to, without following its pointers.

    It does not matter: every record of an answer belongs to the question or to one of its aliases.
    And following the pointers of thousands of records would take seconds, which a hostile packet
    could make us spend.
    """
    while length := buffer.get(1)[0]:
        if length >= 0xC0:  # a pointer of two bytes: RFC 1035, 4.1.4
            buffer.get(1)
            return
        buffer.get(length)


def _text(name: DNSLabel) -> str:
    """A name as text, without the dot at its end; the root alone is that dot."""
    if len(name) > _MAX_NAME:
        raise ValueError("longer than a name can be")
    return str(name).removesuffix(".") or "."
