"""Timing: clocks, ceilings, candidates in turn, and what a user would run otherwise."""
