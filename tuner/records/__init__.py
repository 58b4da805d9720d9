"""Tuned records: brought from elsewhere, shipped, replayed, explained."""
