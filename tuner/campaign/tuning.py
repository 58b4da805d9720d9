"""The third stage: the prepared candidates of each spec, most promising first, then the finals."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from codegen.device import NAMED, Device
from codegen.schedule import Schedule
from codegen.spec import Spec
from tuner import candidates
from tuner.campaign.ledger import Entry
from tuner.campaign.plan import Campaign
from tuner.cost import cost_of
from tuner.cost_model import is_worth_nothing, order_quality
from tuner.finals import judge
from tuner.legal import changes, legal_schedules
from tuner.policy import policy_for, stated
from tuner.pool import Job
from tuner.winner import Beside, winner_record
from tuner.worker import Candidate, Contest, Result
from tuner.workload import NamedSpec
from tuning_db import Outcome

FINALISTS, FINAL_ROUNDS, FINAL_SECONDS = 3, 60, 2.0
SOURCE = "python -m tuner.campaign"

_AT_ONCE = 6

Guessed = tuple[Schedule, float | None]
"""A candidate, and the seconds that `tuner.cost_model` guesses if it was compiled before."""


def tune_all(campaign: Campaign) -> Iterator[Entry]:
    """Tune what was not tuned yet; each spec has an equal share of what is left of the time."""
    todo = [each for each in campaign.workload if _known(campaign, "tuned", each) is None]
    yield from (known for each in campaign.workload if (known := _known(campaign, "tuned", each)))
    waiting: dict[str, dict[str, Job]] = {each.name: {} for each in todo}
    for named in todo:
        # A backward takes longer to compile than to measure: all begin at once.
        _compile_ahead(campaign, named, ordered(campaign, named.spec)[:_AT_ONCE], waiting[named.name], urgent=False)
    for place, named in enumerate(todo):
        left = campaign.left_for("tuned")
        if left <= 0:
            break
        yield tune(campaign, named, left / (len(todo) - place), waiting.pop(named.name))
    for jobs in waiting.values():
        campaign.workers.withdraw(list(jobs.values()))


def tune(campaign: Campaign, named: NamedSpec, seconds: float, waiting: dict[str, Job]) -> Entry:
    """Measure candidates of one spec, hold the finals, and commit the winner.

    Args:
        campaign, named: what is tuned.
        seconds: how long.
        waiting: candidates that are being compiled already, by the names of their findings.
    """
    order = ordered(campaign, named.spec)
    until = campaign.left_for("tuned") - seconds
    measured = list(_measure(campaign, named, order, until, waiting))
    right = sorted((entry.values["seconds"], entry.name) for entry in measured if entry.ok)
    state = campaign.state_of(named.spec)
    if not right:
        reasons = "; ".join(sorted({entry.text for entry in measured})) or "no time was left"
        return campaign.ledger.add(Entry(stage="tuned", name=named.name, state=state, ok=False, text=reasons))
    by_name = {f"{named.name} {schedule.key()}": schedule for schedule, _ in order}
    best = [by_name[name] for _, name in right if by_name[name] != order[0][0]][:FINALISTS]
    return _finals(campaign, named, [order[0][0], *best], len(measured), _quality(named, order, measured))


def ordered(campaign: Campaign, spec: Spec) -> list[Guessed]:
    """The default, the candidates that were prepared for this card or another of its kind, then those nearest to it."""
    device = campaign.device
    legal = legal_schedules(spec, campaign.backend, device)
    prepared: list[Guessed] = []
    path = list_for(device, campaign.candidates)
    if campaign.backend == "triton" and path is not None:
        for ranked in candidates.read(path):
            if ranked.spec == spec.key():
                prepared = candidates.schedules_of(ranked, device)
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
    campaign: Campaign, named: NamedSpec, order: Sequence[Guessed], until: float, waiting: dict[str, Job]
) -> Iterator[Entry]:
    """Findings about candidates in order, old ones first, until so many seconds are left; the default in any case.

    As soon as times show that the guesses are worth nothing, the rest of those that were prepared comes in a random
    order. After them comes what differs least from the best so far.
    """
    state, workers = campaign.state_of(named.spec), campaign.workers
    pairs: list[tuple[float, float]] = []
    best: tuple[float, Schedule] | None = None
    left, shuffled = list(order), False
    while left:
        if best is not None and left[0][1] is None:
            left = _nearest_first(left, best[1])
        _compile_ahead(campaign, named, left, waiting)
        upcoming = left[0] if len(left) == len(order) else _ready(campaign, named, left, waiting, until)
        if upcoming is None:
            break
        left.remove(upcoming)
        schedule, guess = upcoming
        name = f"{named.name} {schedule.key()}"
        entry = campaign.ledger.find("measured", name, state)
        if entry is None:
            entry = campaign.ledger.add(_measured(workers.evaluate(waiting.pop(name)), name, state))
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
    campaign: Campaign, named: NamedSpec, left: Sequence[Guessed], waiting: dict[str, Job], until: float
) -> Guessed | None:
    """The first of the next few that is compiled, or known: some take a minute to compile. None if the time is up."""
    state, jobs = campaign.state_of(named.spec), {}
    for each in left[: 1 + campaign.workers.ahead]:
        name = f"{named.name} {each[0].key()}"
        if campaign.ledger.find("measured", name, state) is not None:
            return each
        jobs[waiting[name]] = each
    seconds = campaign.left_for("tuned") - until
    job = campaign.workers.compiled_within([*jobs], seconds) if seconds > 0 else None
    return None if job is None else jobs[job]


def _shuffled(left: Sequence[Guessed]) -> list[Guessed]:
    """Those with a guess in a random order, then the others."""
    guessed = [each for each in left if each[1] is not None]
    random.Random(0).shuffle(guessed)
    return [*guessed, *(each for each in left if each[1] is None)]


def _nearest_first(left: Sequence[Guessed], best: Schedule) -> list[Guessed]:
    return sorted(left, key=lambda each: changes(each[0], best))


def _compile_ahead(
    campaign: Campaign, named: NamedSpec, left: Sequence[Guessed], waiting: dict[str, Job], urgent: bool = True
) -> None:
    """While one is measured the next few are compiled, if they are urgent before those of other specs."""
    state = campaign.state_of(named.spec)
    for schedule, _ in reversed(left[: 1 + campaign.workers.ahead]):
        name = f"{named.name} {schedule.key()}"
        if name not in waiting and campaign.ledger.find("measured", name, state) is None:
            waiting[name] = campaign.workers.submit(_candidate(campaign, named.spec, schedule), urgent=urgent)


def _measured(result: Result, name: str, state: str) -> Entry:
    ok = result.outcome is Outcome.ok
    values = {"seconds": result.seconds, "spread": result.spread, "compile_seconds": result.compile_seconds}
    text = "" if ok else f"{result.outcome.value}: {result.reason}"
    return Entry(stage="measured", name=name, state=state, ok=ok, text=text, values=values)


def _finals(
    campaign: Campaign, named: NamedSpec, finalists: list[Schedule], tried: int, quality: float | None
) -> Entry:
    spec, device, workers = named.spec, campaign.device, campaign.workers
    contest = Contest(tuple(_candidate(campaign, spec, each) for each in finalists), FINAL_SECONDS, FINAL_ROUNDS)
    timings = {finalists[place].key(): timing for place, timing in workers.contest(contest).items()}
    state = campaign.state_of(spec)
    if not timings:
        text = "none was right when the best were measured again"
        return campaign.ledger.add(Entry(stage="tuned", name=named.name, state=state, ok=False, text=text))
    apart = {each.key(): changes(each, finalists[0]) for each in finalists}
    verdict = judge(timings, finalists[0].key(), apart)
    winner = next(each for each in finalists if each.key() == verdict.winner)
    cost, timing = cost_of(spec), timings[verdict.winner]
    share = workers.ceiling(device, spec.problem.dtype, cost.bytes).share(cost, timing.seconds)
    beside = Beside(timings.get(finalists[0].key()), workers.eager(spec, device).seconds, share, tried)
    policy = stated(policy_for(device), device, FINAL_ROUNDS)
    record = winner_record(spec, winner, device, timing, beside, reason=verdict.reason, policy=policy, source=SOURCE)
    campaign.store.commit(record)
    values = {
        "schedule": winner.settings(),
        "seconds": timing.seconds,
        "default_seconds": record.default_seconds,
        "eager_seconds": record.eager_seconds,
        "ceiling_share": share,
        "tried": tried,
        "order_quality": quality,
    }
    return campaign.ledger.add(
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


def _candidate(campaign: Campaign, spec: Spec, schedule: Schedule) -> Candidate:
    return Candidate(spec, campaign.device, campaign.backend, schedule.settings())


def _known(campaign: Campaign, stage: str, named: NamedSpec) -> Entry | None:
    return campaign.ledger.find(stage, named.name, campaign.state_of(named.spec))
