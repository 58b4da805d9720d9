"""The report at the end of a session: ratios, shares of the measured ceiling, targets, records, machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tests.benchmarks.results import machine
from tests.benchmarks.results.comparison import IMPLEMENTATIONS, Comparison, key
from tests.benchmarks.results.targets import Target
from tests.benchmarks.subjects.rivals import COMPILE, EAGER, UNSET
from tuner.duration import duration


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

    def target(self) -> Target:
        """The median with its limit."""
        return Target(self.name, self.seconds, self.limit, False, remark=self.remark, shown=duration)


@dataclass
class Results:
    """What a session measured so far.

    Attributes:
        targets: beside those of the comparisons and the overheads.
        remarks: what is printed but has no limit, each a sentence.
    """

    comparisons: dict[str, Comparison] = field(default_factory=dict)
    overheads: list[Overhead] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def all_targets(self) -> list[Target]:
        """Every target, in the order of the report."""
        compared = [target for comparison in self.comparisons.values() for target in comparison.targets()]
        return [*compared, *self.targets, *(overhead.target() for overhead in self.overheads)]

    def missed(self) -> list[Target]:
        """The targets that were measured and not reached."""
        return [target for target in self.all_targets() if target.reached is False]


def report(results: Results, load_before: str) -> RenderableType:
    """Everything as one printable thing."""
    parts: list[RenderableType] = []
    if results.comparisons:
        parts += [_ratios(results.comparisons.values()), *_notes(results.comparisons.values())]
    parts += [Text(str(target)) for target in results.all_targets()]
    parts += [Text(f"         {remark}") for remark in results.remarks]
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
    ratios, share = [comparison.ratio(base, name) for base in (EAGER, COMPILE)], comparison.share(name)
    return [
        duration(timing.seconds),
        f"{timing.spread:.0%}",
        str(len(timing.samples)),
        *("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios),
        "-" if share is None else f"{share:.1%}",
    ]


def _notes(comparisons: Iterable[Comparison]) -> list[Text]:
    lines = []
    for comparison in comparisons:
        lines.append(Text(f"{comparison.case.name}: {key(comparison.case.spec)}", style="bold"))
        lines += [Text(f"  {name:<16}  {comparison.notes[name]}") for name in IMPLEMENTATIONS]
    return [*lines, Text()]


def _machine(load_before: str) -> list[Text]:
    def listed(pairs: dict[str, str]) -> str:
        return ", ".join(f"{name} {value}" for name, value in pairs.items())

    return [
        Text(f"device    {machine.here().key()}"),
        Text(f"versions  {listed(machine.versions())}"),
        Text(f"threads   {listed(machine.threads())}"),
        Text(f"          eager and torch.compile in a process of their own, {' and '.join(UNSET)} unset there"),
        Text(f"load      {load_before} before, {machine.load()} after"),
    ]
