"""Which implementation serves a call, decided once, and its launch."""
