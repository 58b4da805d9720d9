"""The page on what makes the model learn, written from whatever results there are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trellis_ops.recall.cell import Result
from trellis_ops.recall.grids import USES_EPS
from trellis_ops.recall.plots import draw_lines
from trellis_ops.recall.tables import differing, grouped, label, markdown, values

_SHOWN = 3
"""Lines of a plot beside phi = identity: the best of the other settings."""

_NAMED = ("phi", "phi_eps", "learned_state", "normalize_qkv", "outer_gradient", "chunk")
"""The settings that have a column or a section of their own."""

HEAD = """# What makes the model learn

How much of recall a small model learns, by the map of the write (`phi`), its epsilon, the first state, whether q, k and
v have unit length, and how gradients pass through the inner step. Written by

    {command}

from {results} results of {cells}; a cell that has no result yet is left out, and the same command goes on with it.

Each model has {layers} layers of {heads} heads, D = {dim}, M = {slots}, and saw {steps} batches of {batch} sequences of
multi-query associative recall (MQAR, [arXiv 2312.04927](https://arxiv.org/abs/2312.04927)) with {pairs} pairs among
{vocab} tokens; gamma starts at {init_gamma}. An answer by chance is right {chance:.3f} of the time. *Fits* is the
mean accuracy for at most as many pairs as there are slots, *beyond* for more. Text is bits per byte of held-out text,
for the same model after as many steps of {windows} windows of 128 bytes. Numbers are means over seeds ({seeds}); a run
whose loss stopped being a number counts as no answer, and is named.
"""


def write_page(results: Sequence[Result], cells: int, path: Path, command: str) -> None:
    """Write the page to `path` and a picture beside it.

    Args:
        results: what there is, all of the same sizes.
        cells: how many the study has in all.
        path: a Markdown file.
        command: what makes it again.
    """
    recall = [each for each in results if each.accuracy]
    parts = [_head(results, cells, command)]
    if recall:
        picture = path.with_suffix(".png")
        also = differing(recall, _NAMED)

        def name(each: Result) -> str:
            return ", ".join(filter(None, (setting(each), label(each, also))))

        ranked = _ranked(recall, name)
        shown = _best(ranked)
        draw_lines([each for each in recall if name(each) in shown], picture, name)
        parts += [_in_short(ranked, shown), f"![accuracy against pairs per slot]({picture.name})"]
    for chunk in sorted({each.cell.chunk for each in results}):
        parts += [f"## C = {chunk}", _table([each for each in results if each.cell.chunk == chunk])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(part.strip() for part in parts) + "\n")


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
        init_gamma=_values(results, "init_gamma"),
        chance=2.0 / cell.vocab,
        windows=next((each.cell.batch for each in results if each.cell.task == "text"), 0),
        seeds=_values(results, "seed"),
    )


def _values(results: Sequence[Result], name: str) -> str:
    return ", ".join(f"{value:g}" for value in sorted({getattr(each.cell, name) for each in results}))


def _ranked(results: Sequence[Result], name: Callable[[Result], str]) -> dict[str, tuple[float, float]]:
    """Every setting with how much it recalls where it fits and beyond, over all C, seeds and gradients; best first."""
    means = {
        text: (statistics.mean(map(fits, group)), statistics.mean(map(beyond, group)))
        for (text,), group in grouped(results, lambda each: (name(each),)).items()
    }
    return dict(sorted(means.items(), key=lambda item: -sum(item[1])))


def _best(ranked: Mapping[str, tuple[float, float]]) -> list[str]:
    """The best linear write and the best of the others."""
    linear = [name for name in ranked if name.startswith("identity")]
    return [*linear[:1], *[name for name in ranked if name not in linear][:_SHOWN]]


def _in_short(ranked: Mapping[str, tuple[float, float]], shown: Sequence[str]) -> str:
    rows = [[name, f"{ranked[name][0]:.2f}", f"{ranked[name][1]:.2f}"] for name in shown]
    text = "The best linear write and the best others, means over what there is of C, gradients and seeds:"
    return f"{text}\n\n{markdown(['setting', 'fits', 'beyond'], rows)}"


def _table(results: Sequence[Result]) -> str:
    gradients = sorted({each.cell.outer_gradient for each in results})
    also = differing(results, _NAMED)
    head = ["phi", "phi_eps", "first state", "q, k, v", *also]
    for gradient in gradients:
        head += [f"{gradient}: fits", "beyond", "text"]
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
    diverged = sum(each.diverged for each in recall)
    lost = f" ({diverged} of {len(recall)} diverged)" if diverged else ""
    return [
        f"{statistics.mean(map(fits, recall)):.2f}{lost}" if recall else "",
        f"{statistics.mean(map(beyond, recall)):.2f}" if recall else "",
        f"{statistics.mean(bits):.3f}" if bits else "",
    ]


def _mean_or_zero(shares: Sequence[float]) -> float:
    return statistics.mean(shares) if shares else 0.0
