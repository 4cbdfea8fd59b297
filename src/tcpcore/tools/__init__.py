"""One module per tool: TOOL, EXAMPLES, and tool(), whose parameters are its own options.

A tool with parts of its own is a package. ALIASES: more names for common options.
"""

from __future__ import annotations

from pathlib import Path


def names() -> list[str]:
    """The tools there are: the modules of this package."""
    found = {x.stem for x in Path(__path__[0]).iterdir() if _is_module(x)}
    return sorted(found - {"__init__"})


def _is_module(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").exists()


def about(name: str) -> str:
    """A tool's docstring, from its source: the list of tools need not import them."""
    path = Path(__path__[0], name)
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return source.read_text().split('"""')[1]
