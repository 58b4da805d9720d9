"""Tables and lines: what a run found, what is known here, what was tried."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from rich.markup import escape
from rich.table import Table

from codegen.device import Device
from tuner.duration import duration
from tuner.offline import Examined
from tuner.slots import HEADS
from tuner.studies import measured, outcomes
from tuner.tune import Tuned
from tuning_db import Outcome, Recommendation, Record, Store

NOISY = 0.25
"""Noise of the finals above which a result should not be relied on."""

_REASONS = 3


def tuned_table(results: Sequence[Tuned]) -> Table:
    """What one run found, a row for each spec."""
    compiled = any(result.record.compile_seconds is not None for result in results)
    table = Table(title="Tuned here", title_justify="left")
    table.add_column("spec", overflow="fold")
    ratios = ("to default", "to eager", *(["to compile"] if compiled else []))
    for name in ("default", "winner", *ratios, "of ceiling", "tried"):
        table.add_column(name, justify="right")
    for result in results:
        record, seconds = result.record, result.record.seconds
        row = [result.name, _time(record.default_seconds), _time(seconds)]
        row += [_ratio(record.default_seconds, seconds), _ratio(record.eager_seconds, seconds)]
        row += [_ratio(record.compile_seconds, seconds)] if compiled else []
        row += [_share(record.ceiling_share), f"{record.trials} of {result.points}"]
        table.add_row(*map(escape, row))
    return table


def tuned_lines(results: Sequence[Tuned]) -> Iterator[str]:
    """What does not fit into `tuned_table`: how each winner computes, why it won, and what failed."""
    for result in results:
        yield f"{result.name}: {settings_text(result.record.schedule)}"
        failures = ", ".join(f"{count} {outcome.value}" for outcome, count in sorted(result.failures.items()))
        yield f"  {result.verdict.reason}" + (f"; failed: {failures}" if failures else "")
    noisy = [result.name for result in results if result.verdict.noise > NOISY]
    if noisy:
        yield f"Noise above {NOISY:.0%} for {', '.join(noisy)}: tune again when nothing else runs on this machine."


def known_lines(store: Store, device: str | None) -> Iterator[str]:
    """The records of a device, or of all: the user's over the shipped ones."""
    own = {record.identity() for record in store.records(device, "user")}
    records = store.records(device)
    if not records:
        yield f"Nothing is known for {device or 'any device'}; run `make tune`."
    for name in sorted({record.device for record in records}):
        yield f"{name}:"
        for record in (record for record in records if record.device == name):
            layer = "user" if record.identity() in own else "shipped"
            yield f"  {record.spec}"
            yield f"    {record.backend}, {layer}, {record.created[:10]}: {performance_text(record)}"
            yield f"    {settings_text(record.schedule)}; {record.reason}"


def front_table(recommendation: Recommendation) -> Table:
    """Slot counts and chunk sizes that no other beats, and which of them is recommended."""
    pairs = list(recommendation.front[0].recall_by_pairs)
    table = Table(title="Slots and chunk size: time, state and recall", title_justify="left")
    of_pairs = [f"of {number} pairs" for number in pairs]
    for name in ("slots", "chunk", f"time per token, {HEADS} heads", "state bytes per head", "recall", *of_pairs, ""):
        table.add_column(name, justify="right")
    for row in recommendation.front:
        chosen = (row.slots, row.chunk) == (recommendation.slots, recommendation.chunk)
        table.add_row(
            str(row.slots),
            str(row.chunk),
            duration(row.seconds_per_token),
            f"{row.state_bytes:,}",
            f"{row.recall:.3f}",
            *(f"{row.recall_by_pairs.get(number, math.nan):.3f}" for number in pairs),
            "recommended" if chosen else "",
        )
    return table


def examined_table(name: str, device: Device, examined: Sequence[Examined]) -> Table:
    """Triton candidates compiled for a device that is not here: what they need, and which are worth measuring there."""
    worth = sum(one.reason is None for one in examined)
    title = f"{name}: {worth} of {len(examined)} Triton candidates compiled for {device.arch} are worth measuring there"
    table = Table(title=title, title_justify="left")
    for column in ("schedule", "registers", "spilled", "shared", "compiled in", "pruned because"):
        table.add_column(column, overflow="fold")
    for one in examined:
        needs = [needs for _, needs in one.kernels]
        row = (
            settings_text(one.schedule.settings()),
            " ".join(str(each.registers) for each in needs),
            " ".join(str(each.spill_bytes) for each in needs),
            " ".join(str(each.shared_bytes) for each in needs),
            f"{one.seconds:.1f} s",
            one.reason or "",
        )
        table.add_row(*map(escape, row))
    return table


def study_lines(storage: RDBStorage) -> Iterator[str]:
    """What was tried in each study of a storage, and why candidates failed."""
    for name in sorted(optuna.get_all_study_names(storage)):
        study = optuna.load_study(study_name=name, storage=storage)
        if "backend" not in study.user_attrs:
            continue
        trials = study.get_trials(deepcopy=False)
        fastest, ended = measured(trials), outcomes(trials)
        about = study.user_attrs
        yield f"{about['spec']}"
        yield f"  {about['device']}, {about['toolchain']}, templates {about['template_digest']}"
        yield f"  {ended.total()} tried, {ended.total() - ended[Outcome.ok]} failed"
        if fastest:
            yield f"  fastest {_time(fastest[0].value)}: {settings_text(fastest[0].params)}"
        yield from (f"  {reason}" for reason in _reasons(trials))


def _reasons(trials: Sequence[FrozenTrial]) -> list[str]:
    reasons = Counter(
        f"{trial.user_attrs['outcome']}: {trial.user_attrs['reason']}"
        for trial in trials
        if trial.user_attrs.get("outcome", Outcome.ok.value) != Outcome.ok.value
    )
    return [f"{reason} ({count})" for reason, count in reasons.most_common(_REASONS)]


def performance_text(record: Record) -> str:
    """How long a winner takes, and how that compares, in one line."""
    parts = [_time(record.seconds)]
    for other, name in ((record.default_seconds, "the default"), (record.eager_seconds, "eager")):
        if other is not None:
            parts.append(f"{_ratio(other, record.seconds)} to {name}")
    if record.ceiling_share is not None:
        parts.append(f"{_share(record.ceiling_share)} of the ceiling")
    return ", ".join(parts)


def settings_text(settings: Mapping[str, object]) -> str:
    """Settings of a schedule as one reads them, the variant first."""
    first = sorted(settings, key=lambda name: name != "variant")
    return " ".join(f"{name}={settings[name]}" for name in first)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _ratio(other: float | None, seconds: float | None) -> str:
    return "-" if other is None or seconds is None else f"{other / seconds:.2f}x"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
