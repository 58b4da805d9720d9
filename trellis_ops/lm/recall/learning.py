"""Training one cell: a small model on recall, or on text."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.recall.cell import Cell, Result
from trellis_ops.lm.recall.cost import Cost, cost_of
from trellis_ops.lm.recall.task import Questions, questions
from trellis_ops.lm.train.data.lanes import IGNORED, Corpus, Lanes
from trellis_ops.lm.train.data.text import hold_out, read_documents
from trellis_ops.lm.train.data.tokenizer import ByteTokenizer
from trellis_ops.lm.train.errors import DivergedError
from trellis_ops.lm.train.loop import Texts, Trainer
from trellis_ops.lm.train.options.schedule import rate_share
from trellis_ops.lm.train.options.settings import Settings
from trellis_ops.lm.train.processes.ranks import Processes

_LEARNED = 0.995
"""Accuracy, at every number of pairs, from which on nothing is left to learn."""

_MEASURED = 128
"""Sequences per number of pairs that are measured on."""

_CHECK_EVERY = 50
_WARMUP = 20
_TEXT_LENGTH = 128
_TEXT_EVAL = 65_536


def learn(cell: Cell, data: Sequence[Path] = ()) -> Result:
    """Train the model of a cell and measure it; the same for the same cell on the same machine.

    Args:
        cell: what to train.
        data: files and folders of text, for the task "text".
    """
    started = time.perf_counter()
    result = _learn_text(cell, data) if cell.task == "text" else _learn_recall(cell)
    return Result(**{**vars(result), "seconds": time.perf_counter() - started})


def untrained_cost(cell: Cell) -> Cost:
    """The cost of the model of a cell, which learning does not change."""
    torch.manual_seed(cell.seed)
    return cost_of(TrellisLM(cell.config()))


def accuracy(model: TrellisLM, asked: Questions) -> float:
    """The share of queries whose likeliest next token is the value."""
    with torch.no_grad():
        logits, _ = model(asked.tokens, return_state=False)
    counts = asked.targets != IGNORED
    return float((logits.argmax(-1) == asked.targets)[counts].double().mean())


def text_of(data: Sequence[Path]) -> tuple[Corpus, Corpus]:
    """The text to fit and the text that is held out, in bytes."""
    fit, held = hold_out(read_documents(data), 0.1)
    encode = ByteTokenizer().encode
    return Corpus.of([encode(each.text) for each in fit]), Corpus.of([encode(each.text) for each in held])


def _learn_recall(cell: Cell) -> Result:
    torch.manual_seed(cell.seed)
    generator = torch.Generator().manual_seed(cell.seed + 1)
    # The same for all cells, whatever their seed: what differs is the model.
    fixed = torch.Generator().manual_seed(0)
    exams = {pairs: questions(_MEASURED, pairs, cell.vocab, fixed) for pairs in cell.pairs}
    model = TrellisLM(cell.config())
    optimizer = torch.optim.AdamW(model.parameters(), cell.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    warmup = min(_WARMUP, cell.steps)
    for step in range(cell.steps):
        for group in optimizer.param_groups:
            group["lr"] = cell.learning_rate * rate_share(step, cell.steps, warmup)
        pairs = _drawn(cell, step, generator)
        asked = questions(cell.batch, pairs, cell.vocab, generator)
        logits, _ = model(asked.tokens, return_state=False)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), asked.targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
            return Result(cell, dict.fromkeys(cell.pairs, 0.0), steps=step, diverged=True)
        optimizer.step()
        if (step + 1) % _CHECK_EVERY == 0 and _knows(model, exams):
            break
    shares = {pairs: accuracy(model, exam) for pairs, exam in exams.items()}
    return Result(cell, shares, steps=step + 1, **vars(cost_of(model)))


def _drawn(cell: Cell, step: int, generator: torch.Generator) -> int:
    """A number of pairs: the smallest at first, one more of them every so often, all in the last half of the steps."""
    known = min(len(cell.pairs), 1 + int(2 * len(cell.pairs) * step / cell.steps))
    return sorted(cell.pairs)[int(torch.randint(known, (), generator=generator))]


def _knows(model: TrellisLM, exams: dict[int, Questions]) -> bool:
    # The largest first: as long as it is not learned, the others need not be asked.
    return all(accuracy(model, exams[pairs]) >= _LEARNED for pairs in sorted(exams, reverse=True))


def _learn_text(cell: Cell, data: Sequence[Path]) -> Result:
    fit, held_out = _text_of(tuple(data))
    settings = Settings(
        steps=cell.steps,
        batch=cell.batch,
        length=_TEXT_LENGTH,
        carry=cell.carry,
        learning_rate=cell.learning_rate,
        warmup=min(_WARMUP, cell.steps),
        precision="float32",
        seed=cell.seed,
    )
    texts = Texts(
        Lanes(fit, cell.batch, _TEXT_LENGTH, cell.seed),
        Lanes(held_out, cell.batch, _TEXT_LENGTH),
        ByteTokenizer().byte_counts(),
        "",
        cell.text,
    )
    trainer = Trainer(cell.config(), settings, texts, Processes(0, 1, torch.device("cpu")))
    try:
        while trainer.step < cell.steps:
            trainer.advance()
    except DivergedError:
        return Result(cell, steps=trainer.step, diverged=True)
    return Result(cell, bits_per_byte=trainer.measure(_TEXT_EVAL), steps=trainer.step)


_text_of = functools.lru_cache(maxsize=1)(text_of)
