"""The report at the end of a session: ratios, shares of the measured ceiling, targets, records, machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tests.benchmarks import machine
from tests.benchmarks.comparison import COMPILE, EAGER, IMPLEMENTATIONS, TUNED, Comparison, key
from tuner.progress import duration


@dataclass(frozen=True)
class Overhead:
    """What something costs beside the kernel.

    Attributes:
        samples: seconds.
        limit: seconds that the median must stay below.
        remark: printed beside the median.
    """

    name: str
    samples: tuple[float, ...]
    limit: float
    remark: str

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(self.samples)


@dataclass
class Results:
    """What a session measured so far."""

    comparisons: dict[str, Comparison] = field(default_factory=dict)
    overheads: list[Overhead] = field(default_factory=list)

    def missed(self) -> list[str]:
        """The targets that were not reached, each in one sentence."""
        return [line for line, reached in _targets(self) if not reached]


def report(results: Results, load_before: str) -> RenderableType:
    """Everything as one printable thing."""
    parts: list[RenderableType] = []
    if results.comparisons:
        parts += [_ratios(results.comparisons.values()), *_notes(results.comparisons.values())]
    parts += [Text(f"{'reached' if reached else 'MISSED '}  {line}") for line, reached in _targets(results)]
    return Group(*parts, Text(), *_machine(load_before))


def _ratios(comparisons: Iterable[Comparison]) -> Table:
    title = "Timed in turn, round by round; medians; ratios are medians over the rounds"
    table = Table(title=title, title_justify="left")
    table.add_column("spec")
    table.add_column("implementation")
    for name in ("median", "spread", "rounds", "to eager", "to compile", "of ceiling"):
        table.add_column(name, justify="right")
    for comparison in comparisons:
        for number, name in enumerate(IMPLEMENTATIONS):
            spec = comparison.case.name if number == 0 else ""
            table.add_row(escape(spec), name, *_row(comparison, name), end_section=number == len(IMPLEMENTATIONS) - 1)
    return table


def _row(comparison: Comparison, name: str) -> list[str]:
    if name not in comparison.timings:
        return ["-"] * 6
    timing = comparison.timings[name]
    ratios = [comparison.ratio(base, name) for base in (EAGER, COMPILE)]
    return [
        duration(timing.seconds),
        f"{timing.spread:.0%}",
        str(len(timing.samples)),
        *("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios),
        f"{comparison.shares[name]:.1%}",
    ]


def _notes(comparisons: Iterable[Comparison]) -> list[Text]:
    lines = []
    for comparison in comparisons:
        lines.append(Text(f"{comparison.case.name}: {key(comparison.case.spec)}", style="bold"))
        lines += [Text(f"  {name:<16}  {comparison.notes[name]}") for name in IMPLEMENTATIONS]
    return [*lines, Text()]


def _targets(results: Results) -> list[tuple[str, bool]]:
    lines = []
    for comparison in results.comparisons.values():
        least, ratio = comparison.case.least_ratio, comparison.ratio(EAGER, TUNED)
        if least is not None:
            found = "the tuned operator did not run" if ratio is None else f"{ratio:.1f}x"
            lines.append((f"{comparison.case.name}: {found}, at least {least:.0f}x eager", (ratio or 0.0) >= least))
    for overhead in results.overheads:
        text = f"{overhead.name}: {duration(overhead.seconds)} ({overhead.remark}), below {duration(overhead.limit)}"
        lines.append((text, overhead.seconds < overhead.limit))
    return lines


def _machine(load_before: str) -> list[Text]:
    def listed(pairs: dict[str, str]) -> str:
        return ", ".join(f"{name} {value}" for name, value in pairs.items())

    return [
        Text(f"device    {machine.here().key()}"),
        Text(f"versions  {listed(machine.versions())}"),
        Text(f"threads   {listed(machine.threads())}"),
        Text(f"load      {load_before} before, {machine.load()} after"),
    ]
