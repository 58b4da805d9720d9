"""Expressions taken apart into straight-line programs, which every backend writes in its own words."""

from __future__ import annotations

from codegen.maps.lowering.lower import program
from codegen.maps.lowering.program import Definition, Program, used

__all__ = ["Definition", "Program", "program", "used"]
