"""What a GPU run found, as a page of Markdown to bring home."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tuner.duration import duration
from tuner.gpu_run.ledger import Entry, Ledger
from tuner.measure.side_by_side import COMPILED, FLOOR, KERNEL


def page(ledger: Ledger, device: str, left_out: Sequence[str]) -> str:
    """The page; what was left out comes first, since a table does not show it."""
    parts = [f"# {device}\n"]
    parts += [f"- Left out: {each}" for each in left_out]
    for title, stage in (("Correctness", "correct"), ("Sanitizer", "sanitizer")):
        parts += _verdicts(title, ledger.of(stage))
    parts += ["\n## Winners\n", *_winners(ledger.of("tuned"))]
    parts += ["\n## Precision of dots\n", *_errors_and_times(ledger.of("precision"), "inputs and dots")]
    parts += ["\n## TVM's kernels, exported\n", *_errors_and_times(ledger.of("tvm"), "operator")]
    parts += ["\n## Beside other implementations\n", *_times(ledger.of("timed"))]
    return "\n".join(parts) + "\n"


def _verdicts(title: str, entries: Sequence[Entry]) -> Iterable[str]:
    bad = [entry for entry in entries if not entry.ok]
    yield f"\n## {title}\n"
    yield f"{len(entries) - len(bad)} of {len(entries)} passed."
    yield from (f"- {entry.name}: {entry.text}" for entry in bad)


def _winners(entries: Sequence[Entry]) -> Iterable[str]:
    yield "| spec | default | winner | to default | to eager | of ceiling | tried | order of guesses | schedule |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for entry in entries:
        if not entry.ok:
            yield f"| {entry.name} | {entry.text} | | | | | | | |"
            continue
        v = entry.values
        quality = "-" if v["order_quality"] is None else f"{v['order_quality']:+.2f}"
        schedule = ", ".join(f"{name}={value}" for name, value in v["schedule"].items())
        cells = [entry.name, _time(v["default_seconds"]), duration(v["seconds"])]
        cells += [_ratio(v["default_seconds"], v["seconds"]), _ratio(v["eager_seconds"], v["seconds"])]
        cells += [f"{v['ceiling_share']:.0%}", str(v["tried"]), quality, schedule]
        yield f"| {' | '.join(cells)} |"


def _errors_and_times(entries: Sequence[Entry], what: str) -> Iterable[str]:
    yield f"| {what} | worst error | time | |"
    yield "|---|---|---|---|"
    for entry in entries:
        errors, seconds = entry.values["errors"], entry.values["seconds"]
        worst = f"{max(errors.values()):.1e}" if errors else "-"
        yield f"| {entry.name} | {worst} | {_time(seconds)} | {entry.text} |"


def _times(entries: Sequence[Entry]) -> Iterable[str]:
    yield "| spec | what | time | to the kernel | of bandwidth | of matrix products | of the chain's floor |"
    yield "|---|---|---|---|---|---|---|"
    for entry in entries:
        if not entry.ok:
            yield f"| {entry.name} | {entry.text} | | | | | |"
            continue
        seconds = entry.values["seconds"]
        for name, value in seconds.items():
            beside = seconds[name.replace(COMPILED, KERNEL) if name.startswith(COMPILED) else KERNEL]
            cells = [entry.name, name, duration(value), _ratio(value, beside), "", "", ""]
            if name == KERNEL:
                cells[4:] = [f"{entry.values['of_bandwidth']:.0%}", f"{entry.values['of_matrix']:.0%}"]
                cells.append(f"{seconds[FLOOR] / value:.0%}")
            yield f"| {' | '.join(cells)} |"
        if entry.text:
            yield f"| {entry.name} | {entry.text} | | | | | |"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _ratio(above: float | None, below: float) -> str:
    return "-" if above is None else f"{above / below:.2f}x"
