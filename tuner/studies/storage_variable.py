"""The environment variable with the URL of the study storage: unlike a command line, no other user can read it."""

from __future__ import annotations

STORAGE_VARIABLE = "TRELLIS_OPS_STORAGE"
