"""One module per tool: TOOL (what it is), rodata() (its own options), command() (its options)."""

from __future__ import annotations

import pkgutil


def names() -> list[str]:
    """The tools there are: the modules of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
