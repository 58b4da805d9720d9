"""Operators under threads, forks, interruptions and a hundred thousand calls."""
