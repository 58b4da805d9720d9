"""What decides a training run, beside its text and its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from codegen.errors import SizeError
from trellis_ops.lm.train.data.tokenizer import TOKENIZERS

MIXERS = ("trellis", "softmax")
"""The memory of this project, or softmax attention in a model of the same size to compare it with."""

PRECISIONS = ("auto", "float32", "bfloat16")
"""The type of the products: "auto" is bfloat16 autocast on a GPU that has it, else float32."""

MOST_STEPS = 2**31 - 1

MOST_TOKENS = 2**24
"""Of a step, over all processes; more would not fit into any memory with its logits."""

_COUNTS = {
    "vocab": (257, 2**20),
    "steps": (1, MOST_STEPS),
    "batch": (1, MOST_TOKENS),
    "length": (1, MOST_TOKENS),
    "warmup": (1, MOST_STEPS),
    "eval_every": (1, MOST_STEPS),
    "eval_tokens": (1, 2**63 - 1),
    "seed": (-(2**63), 2**63 - 1),
}
"""The least and the most of each."""


@dataclass(frozen=True)
class Settings:
    """Everything that the loss curve of a run depends on, beside its text and its model.

    Attributes:
        mixer: one of `MIXERS`.
        tokenizer: one of `TOKENIZERS`.
        vocab: tokens of a BPE.
        steps: updates of the weights.
        batch: windows per step, over all processes.
        length: tokens per window; gradients reach no further back.
        carry: whether a window goes on from the state of the one before it, or from the first state.
        learning_rate: its peak.
        final_rate: what the cosine ends at, as a share of the peak.
        warmup: steps of linear rise.
        weight_decay: of AdamW, on matrices only.
        clip: the largest norm of the gradient.
        precision: one of `PRECISIONS`.
        held_out: share of the text that is measured on and never fitted.
        eval_every: steps between two measurements.
        eval_tokens: held-out tokens that a measurement reads; the last one reads all.
        seed: of the weights and the order of the text.

    Raises:
        SizeError: a number outside its range. ValueError: an unknown name.
    """

    mixer: str = "trellis"
    tokenizer: str = "bytes"
    vocab: int = 1024
    steps: int = 1000
    batch: int = 16
    length: int = 256
    carry: bool = True
    learning_rate: float = 3e-3
    final_rate: float = 0.1
    warmup: int = 50
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: str = "auto"
    held_out: float = 0.1
    eval_every: int = 100
    eval_tokens: int = 65_536
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("mixer", MIXERS), ("tokenizer", TOKENIZERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known; choose one of: {', '.join(known)}")
        for name, (least, most) in _COUNTS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise SizeError(name=name, value=repr(value), expected=f"an int from {least} to {most}")
        if self.batch * self.length > MOST_TOKENS:
            value = f"{self.batch} * {self.length}"
            raise SizeError(name="batch * length", value=value, expected=f"at most {MOST_TOKENS} tokens in a step")
        for name in ("learning_rate", "clip"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise SizeError(name=name, value=getattr(self, name), expected="a positive finite number")
        if not 0.0 <= self.weight_decay < float("inf"):
            raise SizeError(name="weight_decay", value=self.weight_decay, expected="a finite number of at least 0")
        if not 0.0 <= self.final_rate <= 1.0:
            raise SizeError(name="final_rate", value=self.final_rate, expected="a share from 0 to 1")
        if not 0.0 < self.held_out < 1.0:
            raise SizeError(name="held_out", value=self.held_out, expected="a share between 0 and 1, both excluded")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return asdict(self)


def differences(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Every setting that is not what it was, as "name: now, before"."""
    return [
        f"{name}={now.get(name)!r} now, {before.get(name)!r} before"
        for name in sorted({*now, *before})
        if now.get(name) != before.get(name)
    ]
