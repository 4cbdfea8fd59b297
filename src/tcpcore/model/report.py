"""What the reports of all tables have in common."""

from __future__ import annotations

MOST_ROWS = 4096
"""Of a report, whose length the traced host decides: the rest is one row, named `other`."""
