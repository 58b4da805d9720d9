"""One model to train and what came of it: a line in a file of results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trellis_ops.config import TrellisConfig

TASKS = ("recall", "text")


@dataclass(frozen=True)
class Cell:
    """A model and how it is trained; everything that its result depends on.

    Attributes:
        task: "recall", or "text" for bits per byte.
        phi, phi_eps, learned_state, normalize_qkv, outer_gradient, slots, chunk, init_gamma: of the model, see
            `trellis_ops.config.TrellisConfig`.
        seed: of weights and data.
        layers, heads, dim: its sizes; the width is `heads` times `dim`.
        vocab: tokens of the recall task.
        pairs: numbers of pairs, in training and in measuring.
        text: digest of the text of the other task.
        steps, batch, learning_rate: of the training.
    """

    task: str = "recall"
    phi: str = "ln_silu"
    phi_eps: float = 1.0
    learned_state: bool = False
    normalize_qkv: bool = True
    outer_gradient: str = "bilevel"
    slots: int = 8
    chunk: int = 16
    init_gamma: float = 0.1
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

    def key(self) -> str:
        """Text by which a result is found again."""
        return json.dumps(asdict(self), sort_keys=True)

    def config(self) -> TrellisConfig:
        """The model."""
        return TrellisConfig(
            vocab_size=256 if self.task == "text" else self.vocab,
            layers=self.layers,
            width=self.heads * self.dim,
            heads=self.heads,
            num_slots=self.slots,
            chunk_size=self.chunk,
            phi=self.phi,
            phi_eps=self.phi_eps,
            outer_gradient=self.outer_gradient,
            learned_state=self.learned_state,
            normalize_qkv=self.normalize_qkv,
            init_gamma=self.init_gamma,
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
    """

    cell: Cell
    accuracy: Mapping[int, float] = field(default_factory=dict)
    bits_per_byte: float | None = None
    steps: int = 0
    diverged: bool = False
    seconds: float = 0.0

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Result:
        """The result that `to_line` wrote.

        Raises:
            ValueError, TypeError, KeyError: another line.
        """
        content: dict[str, Any] = json.loads(line)
        cell = content.pop("cell")
        accuracy = {int(pairs): float(share) for pairs, share in content.pop("accuracy").items()}
        return cls(cell=Cell(**{**cell, "pairs": tuple(cell["pairs"])}), accuracy=accuracy, **content)
