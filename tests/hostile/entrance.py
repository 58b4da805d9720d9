"""What an entrance is: a place where a name comes in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Entrance = Callable[[str, Path], object]
"""Takes a name in, and may write below a folder; what becomes of the name is followed as far as it goes."""
