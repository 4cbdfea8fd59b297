"""Which name an address was asked by, from the DNS answers that this host receives.

A hint, not a proof. Answers from a cache, over TLS or HTTPS, or in another network namespace are
not seen, and whoever can send packets from port 53 can forge one.

`connect --dns` alone imports this package: it needs dnslib, and takes time to import. It imports
all that it will ever need, since after the privileges are dropped Python's own files may be closed
to us.
"""

from tcpcore.enrich.dns.names import Namer
from tcpcore.enrich.dns.sniffer import Sniffer

__all__ = ["Namer", "Sniffer"]
