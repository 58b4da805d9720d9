"""What is known: tuning records in a user layer over a shipped one. Needs neither torch nor a compiler."""

from __future__ import annotations

from tuning_db.default import default_store
from tuning_db.errors import (
    FOLDER_VARIABLE,
    DatabaseBusyError,
    DatabaseFullError,
    DatabaseWriteError,
    RecordError,
    TuningDatabaseError,
)
from tuning_db.failures import Failures, settings_key
from tuning_db.records.field_rules import shortened, utc_now
from tuning_db.records.recommendation import FRONT_HEADS, FrontRow, Recommendation
from tuning_db.records.record import SCHEMA, Identity, Outcome, Record
from tuning_db.store import SHIPPED, Match, NearMiss, Store
from tuning_db.warning import TuningDatabaseWarning

DISTRIBUTION = "trellis-ops"
"""What a package of the same name from elsewhere lacks; `trellis_ops.own_packages` looks for it."""

__all__ = [
    "FOLDER_VARIABLE",
    "FRONT_HEADS",
    "SCHEMA",
    "SHIPPED",
    "DatabaseBusyError",
    "DatabaseFullError",
    "DatabaseWriteError",
    "Failures",
    "FrontRow",
    "Identity",
    "Match",
    "NearMiss",
    "Outcome",
    "Recommendation",
    "Record",
    "RecordError",
    "Store",
    "TuningDatabaseError",
    "TuningDatabaseWarning",
    "default_store",
    "settings_key",
    "shortened",
    "utc_now",
]
