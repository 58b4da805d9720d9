"""How cases are listed."""

from __future__ import annotations

Cases = dict[str, dict[str, tuple[str, ...]]]
"""Cases by file and test, each as pytest prints it between brackets."""

ALL = ("",)
"""Every case of a test."""
