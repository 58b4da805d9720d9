"""The table of rules: its parts as they are measured, kept and printed."""
