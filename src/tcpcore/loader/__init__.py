"""libbpf through ctypes: open, adjust, load and attach objects, and read what they send.

Knows nothing of TCP and works without the rest of tcpcore. The phases keep libbpf's names.
"""

from tcpcore.loader.elf import ObjectFile
from tcpcore.loader.kernel import Btf
from tcpcore.loader.object import Attached, Settings, attached
from tcpcore.loader.perf import Layout, PerfBuffer, RingSize
from tcpcore.loader.plan import Slot, Way

__all__ = [
    "Attached",
    "Btf",
    "Layout",
    "ObjectFile",
    "PerfBuffer",
    "RingSize",
    "Settings",
    "Slot",
    "Way",
    "attached",
]
