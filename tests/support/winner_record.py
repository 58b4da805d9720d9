"""A tuning record as a search on this machine's CPU would commit it."""

from __future__ import annotations

from typing import Any

from codegen.backends import backend
from codegen.device import cpu
from codegen.kernels.build import operator_digest
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec, bucket
from tuning_db import Outcome, Record, utc_now


def winner_record(spec: Spec, schedule: Schedule, /, **changes: Any) -> Record:
    """The record of `schedule` as the winner for `spec`, with `changes` to its fields."""
    fields: dict[str, Any] = {
        "spec": spec.key(),
        "bucket": bucket(spec).key(),
        "device": cpu().key(),
        "backend": "tvm",
        "template_digest": operator_digest(spec.problem, "tvm"),
        "schedule": schedule.settings(),
        "outcome": Outcome.ok,
        "seconds": 1e-3,
        "toolchain": backend("tvm").toolchain(),
        "created": utc_now(),
    }
    return Record(**(fields | changes))
