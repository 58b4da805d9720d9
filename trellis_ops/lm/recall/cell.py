"""One model to train and what came of it: a line in a file of results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from codegen.errors import SizeError
from trellis_ops.lm.config import TrellisConfig

TASKS = ("recall", "text")

_COUNTS = {
    "layers": (1, 2**12),
    "heads": (1, 2**12),
    "dim": (1, 2**12),
    "vocab": (2, 2**16),
    "dim_k": (0, 2**12),
    "dim_v": (0, 2**12),
    "mlp": (0, 2**24),
    "steps": (1, 2**31 - 1),
    "batch": (1, 2**16),
    "seed": (-(2**63), 2**63 - 1),
}
"""The least and the most of each; what is missing here, the configuration of the model checks."""


@dataclass(frozen=True)
class Cell:
    """A model and how it is trained; everything that its result depends on.

    Attributes:
        task: "recall", or "text" for bits per byte.
        rule: the name of one, or its text.
        phi, phi_eps, learned_state, normalize_qkv, outer_gradient, slots, chunk, init_step_size: of the model, see
            `trellis_ops.lm.config.TrellisConfig`.
        seed: of weights and data.
        layers, heads, dim: its sizes; the width is `heads` times `dim`.
        dim_k, dim_v: D_k and D_v; 0 is `dim`.
        mlp: hidden width of its SwiGLU; 0 is that of the model's defaults.
        vocab: tokens of the recall task.
        pairs: numbers of pairs, in training and in measuring.
        text: digest of the text of the other task.
        steps, batch, learning_rate: of the training.
        carry: whether a window of the text goes on from the state of the one before it, or from the first state.

    Raises:
        SizeError: a number outside its range. TypeError: a value of another type. UnknownMapError, ValueError: an
            unknown name.
    """

    task: str = "recall"
    phi: str = "ln_silu"
    phi_eps: float = 1.0
    learned_state: bool = False
    normalize_qkv: bool = True
    outer_gradient: str = "bilevel"
    slots: int = 8
    chunk: int = 16
    init_step_size: float = 0.1
    seed: int = 0
    layers: int = 2
    heads: int = 2
    dim: int = 32
    vocab: int = 64
    pairs: tuple[int, ...] = (4, 8, 16, 32)
    text: str = ""
    steps: int = 300
    batch: int = 32
    learning_rate: float = 4e-3
    rule: str = "trellis"
    dim_k: int = 0
    dim_v: int = 0
    mlp: int = 0
    carry: bool = True

    def __post_init__(self) -> None:
        _check_types(self)
        for name, (least, most) in _COUNTS.items():
            if not least <= getattr(self, name) <= most:
                raise SizeError(name=name, value=getattr(self, name), expected=f"{least} to {most}")
        for each in self.pairs:
            if type(each) is not int or not 1 <= each <= self.vocab // 2:
                expected = f"1 to {self.vocab // 2}, the keys of {self.vocab} tokens"
                raise SizeError(name="pairs", value=repr(each), expected=expected)
        if not 0.0 < self.learning_rate < math.inf:
            raise SizeError(name="learning_rate", value=self.learning_rate, expected="a positive finite number")
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r} is not known; choose one of: {', '.join(TASKS)}")
        self.config()

    def key(self) -> str:
        """Text by which a result is found again."""
        return json.dumps(asdict(self), sort_keys=True)

    def config(self) -> TrellisConfig:
        """The model."""
        width = self.heads * self.dim
        # Half a unit more, so that no rounding takes one away.
        mlp: dict[str, Any] = {"mlp_ratio": (self.mlp + 0.5) / width, "mlp_multiple": 1} if self.mlp else {}
        return TrellisConfig(
            **mlp,
            rule=self.rule,
            dim_k=self.dim_k or None,
            dim_v=self.dim_v or None,
            vocab_size=256 if self.task == "text" else self.vocab,
            layers=self.layers,
            width=width,
            heads=self.heads,
            num_slots=self.slots,
            chunk_size=self.chunk,
            phi=self.phi,
            phi_eps=self.phi_eps,
            outer_gradient=self.outer_gradient,
            learned_state=self.learned_state,
            normalize_qkv=self.normalize_qkv,
            init_step_size=self.init_step_size,
        )


@dataclass(frozen=True)
class Result:
    """What came of a cell.

    Attributes:
        cell: what was trained.
        accuracy: share of queries answered, by number of pairs.
        bits_per_byte: of held-out text.
        steps: how many were taken; fewer than asked for where all was learned, or the loss was no number.
        diverged: whether the loss stopped being a number.
        seconds: how long it took.
        parameters: of the model; 0 where it was not counted, as in results of older versions.
        state_bytes: of all that one sequence carries from token to token, alike.
        decode_us: time of one token of one sequence, decoded one by one, in microseconds, while other cells ran beside.
    """

    cell: Cell
    accuracy: Mapping[int, float] = field(default_factory=dict)
    bits_per_byte: float | None = None
    steps: int = 0
    diverged: bool = False
    seconds: float = 0.0
    parameters: int = 0
    state_bytes: int = 0
    decode_us: float | None = None

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Result:
        """The result that `to_line` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, RecursionError: another line.
        """
        content: dict[str, Any] = json.loads(line)
        cell = content.pop("cell")
        accuracy = {int(pairs): float(share) for pairs, share in content.pop("accuracy").items()}
        result = cls(cell=Cell(**{**cell, "pairs": tuple(cell["pairs"])}), accuracy=accuracy, **content)
        _check_types(result)
        return result


def _check_types(record: Cell | Result) -> None:
    """Raise unless every field has a type that its annotation allows."""
    for each in fields(record):
        value = getattr(record, each.name)
        allowed = _TYPES.get(str(each.type))
        # An exact type: True is an int.
        if allowed is not None and type(value) not in allowed:
            raise TypeError(f"{each.name}={value!r:.80} is no {each.type}")


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "float | None": (float, int, type(None)),
    "tuple[int, ...]": (tuple,),
}
