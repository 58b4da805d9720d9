"""The page on what makes the model learn, written from whatever results there are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from trellis_ops.lm.recall import grids
from trellis_ops.lm.recall.cell import Result
from trellis_ops.lm.recall.grids import USES_EPS
from trellis_ops.lm.recall.one_change import axes_of, one_change_table
from trellis_ops.lm.recall.report import pages
from trellis_ops.lm.recall.report.plots import draw_lines
from trellis_ops.lm.recall.report.tables import differing, grouped, label, markdown, seeds, values

_SHOWN = 3
"""Lines of a plot beside the middle and phi = identity: the best of the other settings."""

_NAMED = ("phi", "phi_eps", "learned_state", "normalize_qkv", "outer_gradient", "chunk")
"""The settings that have a column or a section of their own."""

HEAD = """## What was trained

Written by

    {command}

from {results} results of {cells} in the grid; what has no result yet is left out, and the same command goes on with it.

Each model has {layers} layers of {heads} heads, D = {dim}, M = {slots}, and saw {steps} batches of {batch} sequences of
multi-query associative recall (MQAR, [arXiv 2312.04927](https://arxiv.org/abs/2312.04927)) with {pairs} pairs among
{vocab} tokens, at a learning rate of {rate:g}. An answer by chance is right {chance:.3f} of the time. *Fits* is the
mean accuracy for at most as many pairs as there are slots, *beyond* for more. *Text* is bits per byte of held-out text,
for the same model after as many steps of {windows} windows of 128 bytes. *Seeds* is how many there are of each: of
recall, and of text where it differs. A run whose loss stopped being a number counts as no answer, and is named.
"""

ONE_CHANGE = """## One change at a time

The baseline is {middle}, {gradient} gradients, C = {chunk}, a step size from {step_size:g}. Share of queries answered,
by the number of pairs, and bits per byte; mean ± standard deviation over seeds.
"""


def write_page(results: Sequence[Result], cells: int, path: Path, command: str) -> None:
    """Write tables to `path`, after what a person wrote there, and a picture beside it.

    Args:
        results: what there is, all of the same sizes.
        cells: how many the study has in all.
        path: a Markdown file.
        command: what makes it again.
    """
    recall = [each for each in results if each.accuracy]
    parts = [_head(results, cells, command)]
    if recall:
        path.parent.mkdir(parents=True, exist_ok=True)
        parts += [_one_change(results), _drawn(recall, path.with_suffix(".png"))]
    for chunk in sorted({each.cell.chunk for each in results}):
        parts += [f"## All results for C = {chunk}", _table([each for each in results if each.cell.chunk == chunk])]
    pages.write(path, "What makes the model learn", parts)


def setting(result: Result) -> str:
    """The name of a combination, without C, seed and gradient."""
    cell = result.cell
    eps = f" {cell.phi_eps:g}" if cell.phi in USES_EPS else ""
    first = "learned" if cell.learned_state else "zero"
    return f"{cell.phi}{eps}, {first}, {'unit' if cell.normalize_qkv else 'as is'}"


def fits(result: Result) -> float:
    """Mean accuracy for at most as many pairs as slots."""
    return _mean_or_zero([share for pairs, share in result.accuracy.items() if pairs <= result.cell.slots])


def beyond(result: Result) -> float:
    """Mean accuracy for more pairs than slots."""
    return _mean_or_zero([share for pairs, share in result.accuracy.items() if pairs > result.cell.slots])


def _head(results: Sequence[Result], cells: int, command: str) -> str:
    cell = next((each.cell for each in results if each.cell.task == "recall"), results[0].cell)
    return HEAD.format(
        command=command,
        results=len(results),
        cells=cells,
        layers=cell.layers,
        heads=cell.heads,
        dim=cell.dim,
        slots=_values(results, "slots"),
        steps=cell.steps,
        batch=cell.batch,
        pairs=", ".join(map(str, cell.pairs)),
        vocab=cell.vocab,
        rate=cell.learning_rate,
        chance=2.0 / cell.vocab,
        windows=next((each.cell.batch for each in results if each.cell.task == "text"), 0),
    )


def _values(results: Sequence[Result], name: str) -> str:
    return ", ".join(f"{value:g}" for value in sorted({getattr(each.cell, name) for each in results}))


def _one_change(results: Sequence[Result]) -> str:
    middle = grids.middle(axes_of(results))
    text = ONE_CHANGE.format(
        middle=setting(Result(middle)),
        gradient=middle.outer_gradient,
        chunk=middle.chunk,
        step_size=middle.init_step_size,
    )
    return f"{text}\n{one_change_table(results)}"


def _drawn(recall: Sequence[Result], picture: Path) -> str:
    """The baseline, the best linear write and the best others, with the outer gradient of the baseline."""
    axes = axes_of(recall)
    alike = [each for each in recall if not {"outer_gradient"} & {*grids.changes(each.cell, axes)}]
    also = differing(alike, _NAMED)

    def name(each: Result) -> str:
        return ", ".join(filter(None, (setting(each), label(each, also))))

    near = [each for each in alike if "chunk" not in grids.changes(each.cell, axes)]
    ranked = _ranked(near, name)
    linear = [text for text in ranked if text.startswith("identity")]
    centre = {name(each) for each in near if not grids.changes(each.cell, axes)}
    shown = {*centre, *linear[:1], *[text for text in ranked if text not in linear][:_SHOWN]}
    draw_lines([each for each in alike if name(each) in shown], picture, name)
    text = "The baseline, the best linear write and the best others:"
    return f"{text}\n\n![accuracy against pairs per slot]({picture.name})"


def _ranked(results: Sequence[Result], name: Callable[[Result], str]) -> list[str]:
    means = {
        text: statistics.mean(fits(each) + beyond(each) for each in group)
        for (text,), group in grouped(results, lambda each: (name(each),)).items()
    }
    return sorted(means, key=means.__getitem__, reverse=True)


def _table(results: Sequence[Result]) -> str:
    gradients = sorted({each.cell.outer_gradient for each in results})
    also = differing(results, _NAMED)
    head = ["phi", "phi_eps", "first state", "q, k, v", *also]
    for gradient in gradients:
        head += [f"{gradient}: fits", "beyond", "text", "seeds"]
    rows = []
    for key, group in grouped(results, lambda each: (*_row_of(each), *values(each, also))).items():
        row = [str(each) for each in key]
        for gradient in gradients:
            row += _columns([each for each in group if each.cell.outer_gradient == gradient])
        rows.append(row)
    return markdown(head, rows)


def _row_of(result: Result) -> tuple[str, ...]:
    cell = result.cell
    eps = f"{cell.phi_eps:g}" if cell.phi in USES_EPS else "-"
    return cell.phi, eps, "learned" if cell.learned_state else "zero", "unit" if cell.normalize_qkv else "as is"


def _columns(results: Sequence[Result]) -> list[str]:
    recall = [each for each in results if each.cell.task == "recall"]
    bits = [each.bits_per_byte for each in results if each.bits_per_byte is not None]
    return [
        f"{statistics.mean(map(fits, recall)):.2f}" if recall else "",
        f"{statistics.mean(map(beyond, recall)):.2f}" if recall else "",
        f"{statistics.mean(bits):.3f}" if bits else "",
        seeds(results),
    ]


def _mean_or_zero(shares: Sequence[float]) -> float:
    return statistics.mean(shares) if shares else 0.0
