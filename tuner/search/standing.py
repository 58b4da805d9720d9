"""Which records are in effect: those that a call on their device would take with what is installed here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from codegen.backends import backend as compiler
from codegen.device import cpu, gpu_names
from codegen.errors import TrellisError
from codegen.kernels.build import operator_digest
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import from_settings
from codegen.spec import spec_of_key
from tuning_db import Record


@dataclass(frozen=True)
class Standing:
    """A record, and why no call takes it; None if calls of its spec do."""

    record: Record
    passed_over: str | None


def standings(records: Iterable[Record]) -> list[Standing]:
    """Of each spec, device and backend the record in effect; where there is none, the newest, and why it is not."""
    best: dict[tuple[str, str, str], Standing] = {}
    for record in records:
        place = record.spec, record.device, record.backend
        one = Standing(record, why_passed_over(record))
        rival = best.get(place)
        if rival is None or _rank(one) > _rank(rival):
            best[place] = one
    return [best[place] for place in sorted(best)]


def why_passed_over(record: Record) -> str | None:
    """Why no call takes a record, in a few words; None if calls of its spec on its device do.

    With which compiler a record was checked matters where its device is; of a device that is elsewhere nothing is said.
    """
    try:
        spec = spec_of_key(record.spec)
        schedule = from_settings(record.backend, dict(record.schedule))
        if operator_digest(spec.problem, record.backend) != record.template_digest:
            return "it was made of other templates"
        if record.device not in (cpu().key(), *gpu_names()):
            return None
        now = compiler(record.backend).toolchain()
    except TrellisError as error:
        return f"this version cannot use it: {error}"
    illegal = why_illegal(spec, schedule, cpu()) if record.device == cpu().key() else None
    if illegal is not None:
        return f"its schedule is illegal: {illegal}"
    changed = [name for name in now if record.toolchain.get(name) != now[name]]
    versions = ", ".join(f"{name} {record.toolchain.get(name)}, here {now[name]}" for name in changed)
    return f"it was checked with another toolchain ({versions})" if changed else None


def _rank(standing: Standing) -> tuple[object, ...]:
    return (standing.passed_over is None, *standing.record.recency())
