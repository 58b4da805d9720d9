"""The point of the tuner's front that a model takes for "auto": its knee, or the best that fits into budgets."""

from __future__ import annotations

from dataclasses import dataclass

from trellis_ops.errors import BudgetExceededError
from tuning_db import FRONT_HEADS, FrontRow, Recommendation

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Budgets:
    """What the memories of a model may cost, and the sizes that decide it.

    Attributes:
        latency_us: most microseconds per token for the memories of all layers; None for any. Times of the front are
            those of long sequences and `FRONT_HEADS` heads, and are taken to grow with heads and layers.
        state_bytes: most bytes of one sequence's state, all layers; None for any.
        layers, heads, dims: of the model; dims is D_k + D_v.
        states: how many states of a memory a decoder keeps at C > 1, 2 with chunk-start states.
    """

    latency_us: float | None
    state_bytes: int | None
    layers: int
    heads: int
    dims: int
    states: int

    def latency_of(self, row: FrontRow) -> float:
        """Microseconds per token."""
        return row.seconds_per_token * 1e6 * self.layers * self.heads / FRONT_HEADS

    def bytes_of(self, row: FrontRow) -> int:
        """Bytes of a sequence's state."""
        states = self.states if row.chunk > 1 else 1
        return self.layers * self.heads * row.slots * self.dims * _FLOAT_BYTES * states

    def allow(self, row: FrontRow) -> bool:
        """Whether a point fits into both."""
        fast = self.latency_us is None or self.latency_of(row) <= self.latency_us
        return fast and (self.state_bytes is None or self.bytes_of(row) <= self.state_bytes)


def chosen(found: Recommendation, budgets: Budgets) -> FrontRow:
    """The knee where there is no budget; else the best in recall, then the fastest, of the points that fit.

    Raises:
        BudgetExceededError: no point of the front fits.
    """
    if budgets.latency_us is None and budgets.state_bytes is None:
        return next(row for row in found.front if (row.slots, row.chunk) == (found.slots, found.chunk))
    fitting = [row for row in found.front if budgets.allow(row)]
    if not fitting:
        least_us, least_bytes = min(map(budgets.latency_of, found.front)), min(map(budgets.bytes_of, found.front))
        raise BudgetExceededError(
            latency=budgets.latency_us, bytes=budgets.state_bytes, least_us=least_us, least_bytes=least_bytes
        )
    return max(fitting, key=lambda row: (row.recall, -row.seconds_per_token))
