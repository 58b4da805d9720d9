"""Why a winner won, in ten lines: what was tried, what was second, by how much, how sure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from codegen.errors import WorkloadError
from trellis_ops.specs.workload import NamedSpec
from tuner.duration import duration
from tuner.records.history import History
from tuner.report.report import performance_text, settings_text
from tuner.search.finals import CONFIDENCE


def find(asked: str, workload: Sequence[NamedSpec], known: Sequence[History]) -> list[History]:
    """The winners that `asked` means: a name of the workload, or a part of a spec's key.

    Raises:
        WorkloadError: it means none.
    """
    keys = {named.name: named.spec.key() for named in workload}
    wanted = keys.get(asked)
    found = [each for each in known if each.record.spec == wanted or (wanted is None and asked in each.record.spec)]
    if not found:
        names = ", ".join(keys)
        problem = f"no winner is known for it; names of the workload are {names}, and any part of a spec's key will do"
        raise WorkloadError(source=f"--why {asked}", problem=problem)
    return found


def why_lines(history: History) -> Iterator[str]:
    """Ten lines about one winner, and one more if no call takes it."""
    record = history.record
    yield record.spec
    if history.passed_over is not None:
        yield f"  not in effect: {history.passed_over}; `make tune` makes a new one"
    yield f"  on {record.device}, {record.backend}; {history.layer} record of {record.created[:10]}, by {record.source}"
    yield f"  winner: {settings_text(record.schedule)}"
    yield f"  it takes {performance_text(record)}"
    yield f"  {_tried(history)}"
    yield f"  {_second(history)}"
    yield f"  against the default, both measured again in turn: {record.reason or 'nothing is on record'}"
    yield f"  {_sure(history)}"
    yield f"  timed by {record.policy or 'a policy that is not on record'}"
    yield f"  made with {', '.join(f'{name} {version}' for name, version in sorted(record.toolchain.items()))}"


def _tried(history: History) -> str:
    count = history.record.trials
    if history.study is None:
        return f"{count} candidates were tried, in a study that is not in this storage"
    failed = ", ".join(f"{number} {kind.value}" for kind, number in sorted(history.failures().items()))
    return f"{len(history.trials())} candidates were tried; " + (f"failed: {failed}" if failed else "none failed")


def _second(history: History) -> str:
    second, winner = history.second(), history.winner()
    if second is None or second.value is None:
        return "no other candidate is on record"
    behind = decided = ""
    if winner is not None and winner.value:
        # Not the time two lines above, which is from the finals and may differ.
        behind = f", {second.value / winner.value:.2f}x the winner's {duration(winner.value)} there"
        # A search times each candidate by itself, whatever else the machine did then.
        decided = "; less there and not in the finals, which time both in turn" if second.value < winner.value else ""
    return f"the best other, in the search: {duration(second.value)}{behind}: {settings_text(second.params)}{decided}"


def _sure(history: History) -> str:
    spread = history.record.spread
    if spread is None:
        return "how much its samples spread is not on record"
    sure = f"a gain counts if a bootstrap of the rounds is {CONFIDENCE:.0%} sure of it"
    return f"half of its samples lie within {spread:.1%} of their median; {sure}"
