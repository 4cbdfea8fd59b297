"""What an editor and mypy know of tcpcore.trace(): an overload per tool. Part of the build.

`python -m tcpcore.overloads` writes it anew, from the tools' own options and the common ones.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from tcpcore.model.histogram import Histogram
from tcpcore.model.tool import Histograms, Tool
from tcpcore.request.request import Options
from tcpcore.tools import names

STUB = Path(__file__).with_name("_typed.pyi")

_HEAD = '''"""Made by tcpcore.overloads. Changes are lost."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, overload

from tcpcore.api import Events
from tcpcore.model.histogram import Histogram
from tcpcore.request.request import PathLike, Ports, Prefix
'''


def stub() -> str:
    """The text of the stub."""
    modules = {name: importlib.import_module(f"tcpcore.tools.{name}") for name in names()}
    overloads = [each for name, module in modules.items() for each in _overloads(name, module)]
    rows = {row.__module__ for module in modules.values() for row in _rows(module).values()}
    imports = "".join(f"import {module}\n" for module in sorted(rows - {Histogram.__module__}))
    return "\n".join((_HEAD + imports, *overloads))


def _rows(module: ModuleType) -> dict[str | None, type]:
    """The type of the objects that the tool gives, and what it is under each flag alone."""
    parameters = inspect.signature(module.tool).parameters.values()
    flags = [p.name for p in parameters if p.default is False]
    rows: dict[str | None, type] = {None: _row(module.TOOL)}
    for flag in flags:
        row = _row(module.tool(**{flag: True}))
        if row is not rows[None]:
            rows[flag] = row
    return rows


def _row(tool: Tool) -> type:
    kind = tool.kinds[0]
    return Histogram if isinstance(kind, Histograms) else kind.lines.row


def _overloads(name: str, module: ModuleType) -> Iterator[str]:
    rows = _rows(module)
    telling = [flag for flag in rows if flag]
    for flag, row in rows.items():
        options = ",\n    ".join(_options(module, flag, telling))
        where = "" if row is Histogram else f"{row.__module__}."
        yield (
            f'@overload\ndef trace(\n    name: Literal["{name}"],\n    *,\n    {options},\n'
            f") -> AbstractContextManager[Events[{where}{row.__name__}]]: ...\n"
        )


def _options(module: ModuleType, chosen: str | None, telling: list[str]) -> Iterator[str]:
    """chosen: the flag that is set in this overload. telling: those on which the rows depend."""
    hints = get_type_hints(module.tool, include_extras=True)
    del hints["return"]
    own: dict[str, Any] = {name: get_args(hint)[0] for name, hint in hints.items()}
    for name, kind in own.items():
        if name == chosen:
            yield f"{name}: Literal[True]"
        elif name in telling:
            yield f"{name}: Literal[False] = ..."
        else:
            yield f"{name}: {kind.__name__} = ..."
    for name, reference in Options.__annotations__.items():
        if name not in own:
            yield f"{name}: {reference.__forward_arg__} = ..."


def store() -> None:
    """Write the stub, where it has changed: else mypy would read everything anew."""
    text = stub()
    if not STUB.exists() or STUB.read_text() != text:
        STUB.write_text(text)


if __name__ == "__main__":
    store()
