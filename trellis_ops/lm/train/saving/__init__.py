"""Checkpoints: whole or refused, and of one run at a time."""
