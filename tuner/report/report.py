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
from tuner.experiments.slots import HEADS
from tuner.offline.offline import Examined
from tuner.search.standing import standings
from tuner.search.tune import Tuned
from tuner.studies.damaged_trials import DAMAGE
from tuner.studies.studies import measured, outcomes
from tuner.studies.telling import ended
from tuning_db import Outcome, Recommendation, Record, Store

NOISY = 0.25
"""Noise of the finals above which a result should not be relied on."""

DISTURBED = "More than the ceiling cannot be, a probe of it was disturbed"
"""What is said of shares above 100%."""

_MOST_SHARE = 1.005  # What is printed as 100% needs no excuse.
_REASONS = 3
_ABOUT = {"spec", "device", "backend", "toolchain", "template_digest"}


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
        row += [share_text(record.ceiling_share), f"{record.trials} of {result.points}"]
        table.add_row(*map(escape, row))
    return table


def tuned_lines(results: Sequence[Tuned]) -> Iterator[str]:
    """What does not fit into `tuned_table`: how each winner computes, why it won, and what failed."""
    for result in results:
        yield f"{result.name}: {settings_text(result.record.schedule)}"
        failures = ", ".join(f"{count} {outcome.value}" for outcome, count in sorted(result.failures.items()))
        yield f"  {result.verdict.reason}" + (f"; failed: {failures}" if failures else "")
    above = [result.name for result in results if (result.record.ceiling_share or 0.0) > _MOST_SHARE]
    if above:
        yield f"{DISTURBED} for {', '.join(above)}: tune again when nothing else runs on this machine."
    noisy = [result.name for result in results if result.verdict.noise > NOISY]
    if noisy:
        yield f"Noise above {NOISY:.0%} for {', '.join(noisy)}: tune again when nothing else runs on this machine."


def known_lines(store: Store, device: str | None) -> Iterator[str]:
    """The record in effect of each spec of a device, or of all; where there is none, what is known, and why not."""
    own = {record.identity() for record in store.records(device, "user")}
    known = standings(store.records(device))
    if not known:
        yield f"Nothing is known for {device or 'any device'}; run `make tune`."
    for name in sorted({standing.record.device for standing in known}):
        yield f"{name}:"
        for standing in (standing for standing in known if standing.record.device == name):
            record = standing.record
            layer = "user" if record.identity() in own else "shipped"
            yield f"  {record.spec}"
            yield f"    {record.backend}, {layer}, {record.created[:10]}: {performance_text(record)}"
            yield f"    {settings_text(record.schedule)}; {record.reason}"
            if standing.passed_over is not None:
                yield f"    not in effect: {standing.passed_over}; `make tune` makes a new one"


def front_table(recommendation: Recommendation, knee: str = "recommended") -> Table:
    """Slot counts and chunk sizes that no other beats, and which of them is recommended, or is called `knee`."""
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
            knee if chosen else "",
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
    """What was tried in each study of a storage, and why candidates failed; studies of something else are left out."""
    for name in sorted(optuna.get_all_study_names(storage)):
        study = optuna.load_study(study_name=name, storage=storage)
        about = study.user_attrs
        if not about.keys() >= _ABOUT:
            continue
        trials = study.get_trials(deepcopy=False)
        fastest, reached = measured(trials), outcomes(trials)
        yield f"{about['spec']}"
        yield f"  {about['device']}, {about['toolchain']}, templates {about['template_digest']}"
        yield f"  {reached.total()} tried, {reached.total() - reached[Outcome.ok]} failed"
        if fastest:
            yield f"  fastest {_time(fastest[0].value)}: {settings_text(fastest[0].params)}"
        yield from (f"  {reason}" for reason in _reasons(trials))
        damaged = [trial for trial in trials if DAMAGE in trial.user_attrs]
        if damaged:
            number, damage = damaged[0].number, damaged[0].user_attrs[DAMAGE]
            yield f"  {len(damaged)} trials count as not tried, first number {number}: {damage}"


def _reasons(trials: Sequence[FrozenTrial]) -> list[str]:
    reasons = Counter(
        f"{trial.user_attrs['outcome']}: {trial.user_attrs.get('reason', 'without a reason')}"
        for trial in ended(trials)
        if trial.user_attrs["outcome"] != Outcome.ok.value
    )
    return [f"{reason} ({count})" for reason, count in reasons.most_common(_REASONS)]


def performance_text(record: Record) -> str:
    """How long a winner takes, and how that compares, in one line."""
    parts = [_time(record.seconds)]
    for other, name in ((record.default_seconds, "the default"), (record.eager_seconds, "eager")):
        if other is not None:
            parts.append(f"{_ratio(other, record.seconds)} to {name}")
    if record.ceiling_share is not None:
        parts.append(f"{share_text(record.ceiling_share)} of the ceiling")
    above = (record.ceiling_share or 0.0) > _MOST_SHARE
    return ", ".join(parts) + (f" ({DISTURBED[0].lower()}{DISTURBED[1:]})" if above else "")


def settings_text(settings: Mapping[str, object]) -> str:
    """Settings of a schedule as one reads them, the variant first."""
    first = sorted(settings, key=lambda name: name != "variant")
    return " ".join(f"{name}={settings[name]}" for name in first)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _ratio(other: float | None, seconds: float | None) -> str:
    return "-" if other is None or seconds is None else f"{other / seconds:.2f}x"


def share_text(share: float | None) -> str:
    """A share of the ceiling; one that cannot be has a question mark."""
    if share is None:
        return "-"
    return f"{share:.0%}" + ("?" if share > _MOST_SHARE else "")
