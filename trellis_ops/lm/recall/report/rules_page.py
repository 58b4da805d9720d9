"""The page on what models of different rules recall at equal cost, written from whatever results there are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from trellis_ops.lm.recall.cell import Cell, Result
from trellis_ops.lm.recall.report import pages, tables

HEAD = """## What was trained

Written by

    {command}

from {results} results of {cells}, each a model of {layers} layers of {heads} heads, width {width}, after at most
{steps} batches of {batch} sequences of multi-query associative recall (MQAR, [arXiv 2312.04927](https://arxiv.org/abs/2312.04927))
with {pairs} pairs among {vocab} tokens, or {steps} batches of text, at a learning rate of {rate:g}. They took
{minutes:.0f} minutes of one core. By chance {chance:.3f} of the queries are answered.
"""


def write_rules_page(results: Sequence[Result], cells: int, path: Path, command: str) -> str:
    """Write a page; the table.

    Args:
        results: what there is.
        cells: how many the study has in all.
        path: a Markdown file.
        command: what makes it again.
    """
    cell = next((each.cell for each in results if each.cell.task == "recall"), results[0].cell)
    head = HEAD.format(
        command=command,
        results=len(results),
        cells=cells,
        layers=cell.layers,
        heads=cell.heads,
        width=cell.heads * cell.dim,
        steps=cell.steps,
        batch=cell.batch,
        pairs=", ".join(map(str, cell.pairs)),
        vocab=cell.vocab,
        rate=cell.learning_rate,
        minutes=sum(each.seconds for each in results) / 60,
        chance=2.0 / cell.vocab,
    )
    table = rules_table(results)
    pages.write(path, "What each rule recalls at equal cost", [head, table])
    return table


def rules_table(results: Sequence[Result]) -> str:
    """One line for each rule and sizes: accuracy by pairs, bits per byte, and what it costs, with spread over seeds."""
    pairs = sorted({count for each in results for count in each.accuracy})
    head = ["rule", "sizes", *(f"{count} pairs" for count in pairs), "bits per byte", "windows"]
    rows = []
    for (rule, sizes), group in tables.grouped(results, lambda each: (each.cell.rule, sizes_of(each.cell))).items():
        shares = [[each.accuracy[count] for each in group if count in each.accuracy] for count in pairs]
        bits = [each.bits_per_byte for each in group if each.bits_per_byte is not None]
        learned = [*(tables.spread(each, 2) for each in shares), tables.spread(bits, 3), _windows(group)]
        rows.append([rule, sizes, *learned, *_cost(group), tables.seeds(group)])
    return tables.markdown([*head, "parameters", "state bytes", "us per token", "seeds"], rows)


def sizes_of(cell: Cell) -> str:
    """The sizes that differ between rules."""
    config = cell.config()
    dim_k, dim_v = config.key_width // config.heads, config.value_width // config.heads
    slots = f"M = {config.slots}, " if config.record.passes == 2 else ""
    return f"{slots}D = {dim_k}, {dim_v}, C = {config.chunk}"


def _windows(group: Sequence[Result]) -> str:
    """How the text was read."""
    return ", ".join(sorted({"carried" if each.cell.carry else "apart" for each in group if each.cell.task == "text"}))


def _cost(group: Sequence[Result]) -> list[str]:
    """Of those models whose cost was measured; it is the same for all seeds, but for the time."""
    known = [each for each in group if each.decode_us is not None]
    if not known:
        return ["", "", ""]
    decode = statistics.median(each.decode_us for each in known if each.decode_us is not None)
    return [f"{known[0].parameters:,}", f"{known[0].state_bytes:,}", f"{decode:.0f}"]
