"""Pages of which a command writes the second half and a person the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

MARK = "<!-- What follows is written by a command, which keeps what stands before this line. -->"


def write(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write `parts` below `MARK`, and keep what stands above it; `title` stands there on a new page."""
    before, mark, _ = path.read_text().partition(MARK) if path.exists() else ("", "", "")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = [before if mark else f"# {title}", MARK, *parts]
    path.write_text("\n\n".join(part.strip() for part in whole) + "\n")
