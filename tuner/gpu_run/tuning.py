"""The third stage: the prepared candidates of each spec, most promising first, then the finals."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from codegen.device import NAMED, Device
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec
from tuner.gpu_run.ledger import Entry
from tuner.gpu_run.plan import GpuRun
from tuner.measure.cost import cost_of
from tuner.offline import candidates
from tuner.offline.cost_model import is_worth_nothing, order_quality
from tuner.policy import policy_for, stated
from tuner.search.finals import judge
from tuner.search.winner import Beside, winner_record
from tuner.space.legal import changes, legal_schedules
from tuner.workers.pool import Job
from tuner.workers.worker import Candidate, Finals, Result
from tuner.workload import NamedSpec
from tuning_db import Outcome

FINALISTS, FINAL_ROUNDS, FINAL_SECONDS = 3, 60, 2.0
SOURCE = "python -m tuner.gpu_run"

_AT_ONCE = 6

Guessed = tuple[Schedule, float | None]
"""A candidate, and the seconds that `tuner.offline.cost_model` guesses if it was compiled before."""


def tune_all(run: GpuRun) -> Iterator[Entry]:
    """Tune what was not tuned yet; each spec has an equal share of what is left of the time."""
    todo = [each for each in run.workload if _known(run, "tuned", each) is None]
    yield from (known for each in run.workload if (known := _known(run, "tuned", each)))
    waiting: dict[str, dict[str, Job]] = {each.name: {} for each in todo}
    for named in todo:
        # A backward takes longer to compile than to measure: all begin at once.
        _compile_ahead(run, named, ordered(run, named.spec)[:_AT_ONCE], waiting[named.name], urgent=False)
    for place, named in enumerate(todo):
        left = run.left_for("tuned")
        if left <= 0:
            break
        yield tune(run, named, left / (len(todo) - place), waiting.pop(named.name))
    for jobs in waiting.values():
        run.workers.withdraw(list(jobs.values()))


def tune(run: GpuRun, named: NamedSpec, seconds: float, waiting: dict[str, Job]) -> Entry:
    """Measure candidates of one spec, hold the finals, and commit the winner.

    Args:
        run, named: what is tuned.
        seconds: how long.
        waiting: candidates that are being compiled already, by the names of their findings.
    """
    order = ordered(run, named.spec)
    until = run.left_for("tuned") - seconds
    measured = list(_measure(run, named, order, until, waiting))
    right = sorted((entry.values["seconds"], entry.name) for entry in measured if entry.ok)
    state = run.state_of(named.spec)
    if not right:
        reasons = "; ".join(sorted({entry.text for entry in measured})) or "no time was left"
        return run.ledger.add(Entry(stage="tuned", name=named.name, state=state, ok=False, text=reasons))
    by_name = {f"{named.name} {schedule.key()}": schedule for schedule, _ in order}
    best = [by_name[name] for _, name in right if by_name[name] != order[0][0]][:FINALISTS]
    return _finals(run, named, [order[0][0], *best], len(measured), _quality(named, order, measured))


def ordered(run: GpuRun, spec: Spec) -> list[Guessed]:
    """The default, the candidates that were prepared for this card or another of its kind, then those nearest to it."""
    device = run.device
    legal = legal_schedules(spec, run.backend, device)
    prepared: list[Guessed] = []
    path = list_for(device, run.candidates)
    if path is not None:
        for ranked in candidates.read(path):
            if ranked.spec == spec.key():
                prepared = candidates.schedules_of(ranked, run.backend, device)
    guesses = dict(prepared)
    first = (legal[0], guesses.get(legal[0]))
    rest: list[Guessed] = [(schedule, None) for schedule in legal[1:] if schedule not in guesses]
    others = _nearest_first(rest, legal[0])
    return [first, *((schedule, guess) for schedule, guess in prepared if schedule != legal[0]), *others]


def list_for(device: Device, folder: Path) -> Path | None:
    """The list of this card, or of one with the same architecture; None if there is neither."""
    alike = [each for each in NAMED.values() if each.arch == device.arch]
    paths = [candidates.path_for(each, folder) for each in (device, *alike)]
    return next((path for path in paths if path.exists()), None)


def _measure(
    run: GpuRun, named: NamedSpec, order: Sequence[Guessed], until: float, waiting: dict[str, Job]
) -> Iterator[Entry]:
    """Findings about candidates in order, old ones first, until so many seconds are left; the default in any case.

    As soon as times show that the guesses are worth nothing, the rest of those that were prepared comes in a random
    order. After them comes what differs least from the best so far.
    """
    state, workers = run.state_of(named.spec), run.workers
    pairs: list[tuple[float, float]] = []
    best: tuple[float, Schedule] | None = None
    left, shuffled = list(order), False
    while left:
        if best is not None and left[0][1] is None:
            left = _nearest_first(left, best[1])
        _compile_ahead(run, named, left, waiting)
        upcoming = left[0] if len(left) == len(order) else _ready(run, named, left, waiting, until)
        if upcoming is None:
            break
        left.remove(upcoming)
        schedule, guess = upcoming
        name = f"{named.name} {schedule.key()}"
        entry = run.ledger.find("measured", name, state)
        if entry is None:
            entry = run.ledger.add(_measured(workers.evaluate(waiting.pop(name)), name, state))
        yield entry
        if not entry.ok:
            continue
        if best is None or entry.values["seconds"] < best[0]:
            best = entry.values["seconds"], schedule
        if guess is not None:
            pairs.append((guess, entry.values["seconds"]))
        if not shuffled and is_worth_nothing(pairs):
            left, shuffled = _shuffled(left), True
    workers.withdraw(list(waiting.values()))


def _ready(
    run: GpuRun, named: NamedSpec, left: Sequence[Guessed], waiting: dict[str, Job], until: float
) -> Guessed | None:
    """The first of the next few that is compiled, or known: some take a minute to compile. None if the time is up."""
    state, jobs = run.state_of(named.spec), {}
    for each in left[: 1 + run.workers.ahead]:
        name = f"{named.name} {each[0].key()}"
        if run.ledger.find("measured", name, state) is not None:
            return each
        jobs[waiting[name]] = each
    seconds = run.left_for("tuned") - until
    job = run.workers.compiled_within([*jobs], seconds) if seconds > 0 else None
    return None if job is None else jobs[job]


def _shuffled(left: Sequence[Guessed]) -> list[Guessed]:
    """Those with a guess in a random order, then the others."""
    guessed = [each for each in left if each[1] is not None]
    random.Random(0).shuffle(guessed)
    return [*guessed, *(each for each in left if each[1] is None)]


def _nearest_first(left: Sequence[Guessed], best: Schedule) -> list[Guessed]:
    return sorted(left, key=lambda each: changes(each[0], best))


def _compile_ahead(
    run: GpuRun, named: NamedSpec, left: Sequence[Guessed], waiting: dict[str, Job], urgent: bool = True
) -> None:
    """While one is measured the next few are compiled, if they are urgent before those of other specs."""
    state = run.state_of(named.spec)
    for schedule, _ in reversed(left[: 1 + run.workers.ahead]):
        name = f"{named.name} {schedule.key()}"
        if name not in waiting and run.ledger.find("measured", name, state) is None:
            waiting[name] = run.workers.submit(_candidate(run, named.spec, schedule), urgent=urgent)


def _measured(result: Result, name: str, state: str) -> Entry:
    ok = result.outcome is Outcome.ok
    values = {"seconds": result.seconds, "spread": result.spread, "compile_seconds": result.compile_seconds}
    text = "" if ok else f"{result.outcome.value}: {result.reason}"
    return Entry(stage="measured", name=name, state=state, ok=ok, text=text, values=values)


def _finals(run: GpuRun, named: NamedSpec, finalists: list[Schedule], tried: int, quality: float | None) -> Entry:
    spec, device, workers = named.spec, run.device, run.workers
    finals = Finals(tuple(_candidate(run, spec, each) for each in finalists), FINAL_SECONDS, FINAL_ROUNDS)
    timings = {finalists[place].key(): timing for place, timing in workers.finals(finals).items()}
    state = run.state_of(spec)
    if not timings:
        text = "none was right when the best were measured again"
        return run.ledger.add(Entry(stage="tuned", name=named.name, state=state, ok=False, text=text))
    apart = {each.key(): changes(each, finalists[0]) for each in finalists}
    verdict = judge(timings, finalists[0].key(), apart)
    winner = next(each for each in finalists if each.key() == verdict.winner)
    cost, timing = cost_of(spec), timings[verdict.winner]
    share = workers.ceiling(device, spec.problem.dtype, cost.bytes).share(cost, timing.seconds)
    beside = Beside(timings.get(finalists[0].key()), workers.eager(spec, device).seconds, share, tried)
    policy = stated(policy_for(device), device, FINAL_ROUNDS)
    record = winner_record(spec, winner, device, timing, beside, reason=verdict.reason, policy=policy, source=SOURCE)
    run.store.commit(record)
    values = {
        "schedule": winner.settings(),
        "seconds": timing.seconds,
        "default_seconds": record.default_seconds,
        "eager_seconds": record.eager_seconds,
        "ceiling_share": share,
        "tried": tried,
        "order_quality": quality,
    }
    return run.ledger.add(
        Entry(stage="tuned", name=named.name, state=state, ok=True, text=verdict.reason, values=values)
    )


def _quality(named: NamedSpec, order: Sequence[Guessed], measured: Sequence[Entry]) -> float | None:
    """The rank correlation of guesses with times: what the order in which candidates came was worth."""
    times = {entry.name: entry.values["seconds"] for entry in measured if entry.ok}
    pairs = [
        (guess, times[name])
        for schedule, guess in order
        if guess is not None and (name := f"{named.name} {schedule.key()}") in times
    ]
    return order_quality([guess for guess, _ in pairs], [seconds for _, seconds in pairs])


def _candidate(run: GpuRun, spec: Spec, schedule: Schedule) -> Candidate:
    return Candidate(spec, run.device, run.backend, schedule.settings())


def _known(run: GpuRun, stage: str, named: NamedSpec) -> Entry | None:
    return run.ledger.find(stage, named.name, run.state_of(named.spec))
