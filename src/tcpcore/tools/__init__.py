"""One module per tool: TOOL, EXAMPLES, and tool(), whose parameters are its own options.

A tool with parts of its own is a package. ALIASES: more names for common options.
"""

from __future__ import annotations

import pkgutil


def names() -> list[str]:
    """The tools there are: the modules of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
