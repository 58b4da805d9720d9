"""The scaling study as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from tests.benchmarks.results import machine
from tests.benchmarks.results.targets import Target
from tests.benchmarks.studies.growth.decode_memory import Held
from tuner.duration import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tests.benchmarks.studies.growth.scaling import Growth

_HEAD = """# How the cost grows

Written by `make scaling`, which also draws the picture. T, B x H, M and D grow one at a time. Where they do not,
B = 1, H = 8, T = 1024 (512 while B x H grows) and D = M = 64; always C = 64 and float32, and the public operator runs
its default schedule. T starts at 512, where the fixed costs of a call no longer show. Exponents are fitted by least
squares on logarithms of the medians, and of the fastest samples; "operations" is the exponent that the number of
floating-point operations has over the same sizes. The decode goes through one layer of the reference model `tiny`
on one thread, in a process of its own and after a few hundred tokens of another stream; the peak of its resident memory
holds Python and torch, and is counted from the first token on.

![times against sizes](scaling.png)

```text
"""


def page(growths: Sequence[Growth], held: Sequence[Held], targets: Sequence[Target], before: str) -> str:
    """The document."""
    return f"{_HEAD}{table(growths, held, targets, before)}\n```\n"


def table(growths: Sequence[Growth], held: Sequence[Held], targets: Sequence[Target], before: str) -> str:
    """Exponents, times, the decode, the targets, the machine."""
    return "\n".join(
        [
            *_exponents(growths),
            "",
            *_times(growths),
            "",
            *_decode(held),
            "",
            *(str(target) for target in targets),
            "",
            f"device    {machine.here().key()}",
            f"versions  {', '.join(f'{name} {value}' for name, value in machine.versions().items())}",
            f"load      {before} before, {machine.load()} after",
        ]
    )


def _exponents(growths: Sequence[Growth]) -> Iterable[str]:
    yield f"{'':<7}{'from':>6}{'to':>7}{'exponent':>10}{'+-':>7}{'fastest':>9}{'+-':>7}{'operations':>12}{'rounds':>8}"
    for growth in growths:
        values, rounds = list(growth.timings), len(next(iter(growth.timings.values())).samples)
        yield (
            f"{growth.axis.name:<7}{values[0]:>6}{values[-1]:>7}{growth.law.exponent:>10.3f}"
            f"{growth.law.standard_error:>7.3f}{growth.fastest.exponent:>9.3f}{growth.fastest.standard_error:>7.3f}"
            f"{growth.operations.exponent:>12.3f}{rounds:>8}"
        )


def _times(growths: Sequence[Growth]) -> Iterable[str]:
    for growth in growths:
        cells = [(str(value), duration(timing.seconds)) for value, timing in growth.timings.items()]
        yield f"{growth.axis.name:<7}" + "".join(f"{value:>10}" for value, _ in cells)
        yield " " * 7 + "".join(f"{seconds:>10}" for _, seconds in cells)


def _decode(held: Sequence[Held]) -> Iterable[str]:
    yield f"{'decoded tokens':<16}{'state bytes':>12}{'peak MB':>9}{'per token':>11}"
    for each in held:
        yield f"{each.tokens:<16,}{each.state_bytes:>12,}{each.peak_bytes / 1e6:>9.1f}{duration(each.seconds):>11}"


def draw(growths: Sequence[Growth], held: Sequence[Held], path: Path) -> None:
    """Two rows of panels: T, B x H and the decode's memory; M and D and the decode's time per token."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    places = figure.subplots(2, 3)
    for axes, growth in zip((places[0, 0], places[0, 1], places[1, 0], places[1, 1]), growths, strict=True):
        _draw_growth(axes, growth)
    tokens = [each.tokens for each in held]
    memory, pace = places[0, 2], places[1, 2]
    memory.loglog(tokens, [each.peak_bytes for each in held], "s-", label="peak of the process")
    memory.loglog(tokens, [each.state_bytes for each in held], "o-", label="state")
    memory.set(title="memory of a decode", xlabel="tokens so far", ylabel="bytes")
    memory.legend()
    pace.semilogx(tokens, [each.seconds * 1e6 for each in held], "o-")
    pace.set(title="time of a decode", xlabel="tokens so far", ylabel="microseconds per token")
    pace.set_ylim(bottom=0)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_growth(axes: Axes, growth: Growth) -> None:
    values = list(growth.timings)
    axes.loglog(values, [growth.law.at(value) * 1e3 for value in values], "-", color="0.6")
    axes.loglog(values, [timing.seconds * 1e3 for timing in growth.timings.values()], "o")
    title = f"{growth.axis.name}: exponent {growth.law.exponent:.3f} +- {growth.law.standard_error:.3f}"
    axes.set(title=title, xlabel=growth.axis.name, ylabel="milliseconds")
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
