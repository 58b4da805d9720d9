"""The third stage: each spec is searched in the order of its prepared list, then finals are held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from codegen.device import NAMED, Device
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec
from trellis_ops.specs.workload import NamedSpec
from tuner.budget import Budget
from tuner.errors import NothingMeasuredError
from tuner.gpu_run.ledger import Entry
from tuner.gpu_run.plan import GpuRun
from tuner.offline import candidates
from tuner.search.finals import hold_finals
from tuner.search.list_order import ListOrder
from tuner.search.search import search
from tuner.search.strategy import Tried
from tuner.search.winner import commit_winner
from tuner.session import Session
from tuner.space.legal import Settings
from tuner.space.space import Space, space_of
from tuner.workers.worker import Result
from tuning_db import Outcome

FINAL_SECONDS = 2.0

LEAST_SECONDS = 5.0
"""Of the search of one spec: with less no candidate meets the default, which no later run would search again."""

SOURCE = "python -m tuner.gpu_run"

_AT_ONCE = 6


def tune_all(run: GpuRun) -> Iterator[Entry]:
    """Tune what was not tuned yet, rules after TRELLIS' operators; each spec of a part has an equal share of its time.

    A share is not shorter than `LEAST_SECONDS`: what the time does not reach is for another run.
    """
    yield from (known for each in run.workload if (known := _known(run, each)))
    for stage, part in run.parts("tuned"):
        yield from _tune_part(run, stage, [each for each in part if _known(run, each) is None])


def _tune_part(run: GpuRun, stage: str, todo: Sequence[NamedSpec]) -> Iterator[Entry]:
    if run.left_for(stage) < LEAST_SECONDS:
        return
    session, strategies = session_of(run), [strategy_of(run, each) for each in todo]
    # A backward takes longer to compile than to measure: all begin at once.
    prefetched = [
        run.workers.prefetch(session.candidate(named.spec, settings) for settings in strategy.untried()[:_AT_ONCE])
        for named, strategy in zip(todo, strategies, strict=True)
    ]
    for place, (named, strategy) in enumerate(zip(todo, strategies, strict=True)):
        left = run.left_for(stage)
        if left < LEAST_SECONDS:
            break
        budget = Budget(seconds=max(left / (len(todo) - place), LEAST_SECONDS), trials=run.most, strict=True)
        entry = tune(run, named, replace(session, budget=budget), strategy)
        run.workers.withdraw(prefetched[place])
        yield entry
    run.workers.withdraw([job for jobs in prefetched for job in jobs])


def session_of(run: GpuRun) -> Session:
    """What the searches of a GPU run share; each has a budget of its own."""
    budget = Budget(seconds=run.seconds)
    return Session(run.device, run.backend, run.store, budget, run.workers, source=SOURCE, final_seconds=FINAL_SECONDS)


def tune(run: GpuRun, named: NamedSpec, session: Session, strategy: ListOrder) -> Entry:
    """Measure candidates of one spec, hold the finals, and commit the winner."""
    searched = search(named.spec, session, strategy)
    try:
        timings, verdict = hold_finals(named.spec, session, searched)
    except NothingMeasuredError as error:
        return run.ledger.add(_entry(run, "tuned", named.name, named.spec, False, str(error.reasons)))
    record = commit_winner(named.spec, session, searched, timings, verdict)
    values = {
        "schedule": dict(record.schedule),
        "seconds": record.seconds,
        "default_seconds": record.default_seconds,
        "eager_seconds": record.eager_seconds,
        "ceiling_share": record.ceiling_share,
        "tried": record.trials,
        "order_quality": strategy.quality(),
    }
    return run.ledger.add(_entry(run, "tuned", named.name, named.spec, True, verdict.reason, values))


def strategy_of(run: GpuRun, named: NamedSpec) -> ListOrder:
    """The candidates of a spec in the order of its prepared list; the ledger is their memory."""
    space = space_of(named.spec, run.backend, run.device)

    def keep(settings: Settings, result: Result) -> None:
        name = _name(named, space.at(settings))
        ok = result.outcome is Outcome.ok
        text = "" if ok else f"{result.outcome.value}: {result.reason}"
        values = {
            "outcome": result.outcome.value,
            "seconds": result.seconds,
            "spread": result.spread,
            "compile_seconds": result.compile_seconds,
        }
        run.ledger.add(_entry(run, "measured", name, named.spec, ok, text, values))

    return ListOrder(space, _guesses(run, named.spec), _measured(run, named, space), keep)


def _measured(run: GpuRun, named: NamedSpec, space: Space) -> Iterator[Tried]:
    """What earlier runs found out about candidates."""
    state = run.state_of(named.spec)
    for schedule in space.schedules.values():
        entry = run.ledger.find("measured", _name(named, schedule), state)
        if entry is None:
            continue
        # A ledger of an earlier version holds the outcome in the text alone.
        kind = entry.values.get("outcome") or entry.text.partition(": ")[0]
        if entry.ok:
            yield Tried(schedule.settings(), Outcome.ok, seconds=entry.values["seconds"])
        elif kind in (outcome.value for outcome in Outcome):
            yield Tried(schedule.settings(), Outcome(kind), entry.text.removeprefix(f"{kind}: "))


def _guesses(run: GpuRun, spec: Spec) -> dict[Schedule, float | None]:
    """The candidates that were prepared for this card or another of its kind, and the seconds that were guessed.

    In the order of their list: those without a guess are its last.
    """
    path = list_for(run.device, run.candidates)
    lists = () if path is None else candidates.read(path)
    prepared = next((each for each in reversed(lists) if each.spec == spec.key()), None)
    if prepared is None:
        return {}
    return dict(candidates.schedules_of(prepared, run.backend, run.device))


def list_for(device: Device, folder: Path) -> Path | None:
    """The list of this card, or of one with the same architecture; None if there is neither."""
    alike = [each for each in NAMED.values() if each.arch == device.arch]
    paths = [candidates.path_for(each, folder) for each in (device, *alike)]
    return next((path for path in paths if path.exists()), None)


def _known(run: GpuRun, named: NamedSpec) -> Entry | None:
    return run.ledger.find("tuned", named.name, run.state_of(named.spec))


def _name(named: NamedSpec, schedule: Schedule) -> str:
    return f"{named.name} {schedule.key()}"


def _entry(
    run: GpuRun, stage: str, name: str, spec: Spec, ok: bool, text: str, values: Mapping[str, object] | None = None
) -> Entry:
    state = run.state_of(spec)
    return Entry(stage=stage, name=name, state=state, ok=ok, text=text, values=dict(values or {}))
