"""Tables and histograms that the kernel counts: the aggregates of bpf/lib/aggregate.bpf.h.

The key of zeros has what found no room there. In a row of a table, and in the key of a histogram,
its fields are blank: KeyAddress shows `other`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tcpcore.loader import Attached
from tcpcore.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from tcpcore.loader.perf import Record
    from tcpcore.model.report import Distributions
    from tcpcore.model.tool import Counts
    from tcpcore.value import Value


class Counted(Value):
    """Rows of a table.

    aggregate: its name in C. key: the mirror of `struct <struct>`, the aggregate's key. The table's
    row is a subclass of key, with a field for each counter of the value, `struct <struct>_count`,
    and if it is timed a last one for the interval. finish: makes other rows of these; then counters
    is the mirror of the value. keys: how many there are at most, where that is known. begin: made
    with the trace in place of Rows, it takes what is counted out of the aggregate itself; counters
    as above.
    """

    aggregate: str
    key: type[Value]
    struct: str
    timed: bool = False
    finish: Callable[[list[Record]], list[Record]] | None = None
    counters: type[Value] | None = None
    keys: int | None = None
    begin: Callable[[Attached], Counts] | None = None

    def __call__(self, program: Attached) -> Counts:
        if self.begin:
            return self.begin(program)
        from tcpcore.model.report import Rows

        take = program.aggregates[self.aggregate].take
        return Rows(self.key, take, self.timed, self.finish)


class Measured(Value):
    """Histograms, whose values in C are a `struct histogram`.

    measure, unit: as in Histogram. aggregate, key, struct: as in Counted. Without a key there is
    one histogram, which BPF counts under the key of zeros. show: makes of all fields of a key what
    is shown; by default they are.
    """

    aggregate: str
    measure: str
    unit: str = ""
    key: type[Value] | None = None
    struct: str = ""
    show: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def __call__(self, program: Attached) -> Distributions:
        from tcpcore.model.report import Distributions

        return Distributions(self, program.aggregates[self.aggregate].take)
