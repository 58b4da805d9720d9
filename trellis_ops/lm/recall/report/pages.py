"""Pages of which a command writes the second half and a person the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trellis_ops.files import regular_file
from trellis_ops.lm.train.errors import CheckpointError

MARK = "<!-- What follows is written by a command, which keeps what stands before this line. -->"


def write(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write `parts` below `MARK`, and keep what stands above it; `title` stands there on a new page.

    Raises:
        CheckpointError: a page that has no `MARK`, or is no UTF-8. IrregularFileError, FileWriteError: no file.
    """
    before = f"# {title}"
    if path.exists():
        before = _kept(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = [before, MARK, *parts]
    regular_file.write(path, "\n\n".join(part.strip() for part in whole) + "\n")


def _kept(path: Path) -> str:
    try:
        before, mark, _ = regular_file.read_bytes(path).decode().partition(MARK)
    except UnicodeDecodeError as error:
        raise CheckpointError(path=path, problem=f"this is no text in UTF-8 ({error}); name another page") from error
    if not mark and before.strip():
        problem = f"it has no line {MARK!r}, below which a command may write; add that line, or name another page"
        raise CheckpointError(path=path, problem=problem)
    return before
