"""One module per tool: TOOL (what it is), EXAMPLES, tool() (with its own options), command()."""

from __future__ import annotations

import pkgutil


def names() -> list[str]:
    """The tools there are: the modules of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
