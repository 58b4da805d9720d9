"""What a store has counted, as vLLM logs it and shows it among its metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from trellis_ops.serve.store.counts import StoreCounts

METRIC = "vllm:trellis_prefix_store"
"""The name of the counter, to which Prometheus adds `_total`.

The counter of a former engine in this process would be in the way: vLLM removes those whose names begin as its own do.
"""

_OF = ": "


class StoreStats(KVConnectorStats):
    """What a store has counted since it was asked before: `data` has a count for each text of `named`."""

    def reset(self) -> None:
        """Forget all counts."""
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """These counts and those of `other` together."""
        return StoreStats(dict(Counter(self.data) + Counter(other.data)))

    def reduce(self) -> dict[str, int | float]:
        """The counts by name, for a line of the log."""
        return dict(self.data)

    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not self.data


class StoreMetrics(KVConnectorPromMetrics):
    """One counter of Prometheus: its label `what` names a field of `StoreCounts`, and `of` a tier, a reason or both."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        text = "Prompts, tokens, states and faults of the store of prefix states."
        self._counter = self._counter_cls(name=METRIC, documentation=text, labelnames=[*labelnames, "what", "of"])

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add the `data` of a `StoreStats`."""
        for name, count in transfer_stats_data.items():
            what, _, of = name.partition(_OF)
            self._counter.labels(*self.per_engine_labelvalues[engine_idx], what, of).inc(count)


def named(counts: StoreCounts) -> dict[str, int]:
    """Counts by texts such as "misses: unknown", "faults: disk, damaged" and "tokens_found"."""
    return dict(_named(counts))


def _named(counts: StoreCounts) -> Iterator[tuple[str, int]]:
    for what, count in vars(counts).items():
        if not isinstance(count, Mapping):
            yield what, count
            continue
        for of, number in count.items():
            yield f"{what}{_OF}{of if isinstance(of, str) else ', '.join(of)}", number
