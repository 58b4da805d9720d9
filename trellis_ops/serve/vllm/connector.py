"""The connector through which an engine of vLLM keeps states of prefixes in a store, and goes on from them.

The half in the scheduler asks the store how much of a prompt it has, and says which blocks of the cache a stored state
goes into and which are worth keeping. The half in the worker moves them. Both are in one process: what the store has
found is handed over as it is.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from codegen.errors import SizeError
from codegen.scalars import whole_number
from trellis_ops.errors import ServingError
from trellis_ops.serve.store.prefix_store import Lookup
from trellis_ops.serve.vllm.store_metrics import StoreMetrics, StoreStats, named
from trellis_ops.serve.vllm.store_options import StoreOptions
from trellis_ops.serve.vllm.stored import StoredModel, chosen, model_of

if TYPE_CHECKING:
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

_log = logging.getLogger("trellis_ops.serve.store")


@dataclass(frozen=True)
class Load:
    """A stored state that goes into a block of the cache before its request is computed.

    Attributes:
        model: whose cache.
        request: its name.
        slot: the block.
        tensors: the state.
    """

    model: StoredModel
    request: str
    slot: int
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Save:
    """A state that is in a block of the cache after this step, and that the store wants.

    Attributes:
        model: whose cache.
        lookup: of the prompt.
        slot: the block.
        tokens: length of the prefix.
    """

    model: StoredModel
    lookup: Lookup
    slot: int
    tokens: int


@dataclass
class Asked:
    """What the store said of the prompt of a request.

    Attributes:
        request: whose prompt.
        digest: of the weights then; what others have made is not theirs.
        lookup: without its tensors once they went into the cache, or were not needed.
    """

    request: Request
    digest: str
    lookup: Lookup

    def stop_next(self, after: int) -> None:
        """Let the scheduler end a step at the next length above `after` whose state the store wants."""
        self.request.shared_prefix_boundary = next((each for each in self.lookup.wanted if each > after), 0)


@dataclass
class StepStates(KVConnectorMetadata):
    """What the worker moves in one step."""

    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)


class TrellisStateConnector(KVConnectorBase_V1, SupportsHMA):
    """See the module; `StoreOptions` has what `kv_connector_extra_config` says.

    Attributes:
        store: where states are kept, in the scheduler's half.

    Raises:
        ServingError: another connector has this one within it. And what `StoreOptions.opened` raises.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if not chosen(vllm_config):
            reason = "the store is chosen by its own name, not within another connector"
            name = vllm_config.kv_transfer_config.kv_connector
            raise ServingError(engine="vLLM", name="kv_connector", value=name, reason=reason)
        self._moved: set[str] = set()
        if role is not KVConnectorRole.SCHEDULER:
            return
        self._options = StoreOptions.of(vllm_config.kv_transfer_config.kv_connector_extra_config)
        self.store = self._options.opened()
        self._block = vllm_config.cache_config.block_size
        self._asked: dict[str, Asked] = {}
        self._step = StepStates()
        self._has_warned = False
        self._told: dict[str, int] = {}

    # In the scheduler.

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens the store has beyond those in vLLM's own cache; they are loaded between two steps."""
        asked = self._ask(request, num_computed_tokens)
        if asked is None:
            return 0, False
        asked.stop_next(max(asked.lookup.found, num_computed_tokens))
        beyond = max(asked.lookup.found - num_computed_tokens, 0)
        return beyond, beyond > 0

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Load the state of a prompt into the block that vLLM has allocated for it."""
        asked, model = self._asked.get(request.request_id), self._model()
        if asked is None or model is None:
            return
        lookup = asked.lookup
        if num_external_tokens > 0:
            (slots,) = blocks.get_block_ids()
            slot = slots[lookup.found // self._block - 1]
            self._step.loads.append(Load(model, request.request_id, slot, dict(lookup.tensors)))
        # A request that begins again, because it was preempted, computes what it had loaded.
        asked.lookup = replace(lookup, found=0, tensors={})

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepStates:
        """What the worker moves in this step: the loads, and the states at the ends of blocks that the store wants."""
        step, self._step = self._step, StepStates()
        offered, model = scheduler_output.kv_connector_block_state, self._model()
        for name, states in ({} if offered is None else offered.boundary_state_offloads).items():
            asked = self._asked.get(name)
            if model is None or asked is None or asked.digest != model.digest:
                continue
            for _, slot, tokens in states:
                if tokens in asked.lookup.wanted:
                    step.saves.append(Save(model, asked.lookup, slot, tokens))
                    asked.stop_next(tokens)
        return step

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request; its blocks are free at once, as states are copied in the step that makes them."""
        self._asked.pop(request.request_id, None)
        return False, None

    def reset_cache(self) -> bool:
        """Go on as with other weights: what was stored until now is not found again."""
        model = self._model()
        if model is not None:
            model.changed()
        return model is not None

    def get_kv_connector_stats(self) -> StoreStats | None:
        """What the store has counted since the last call; vLLM logs it, and adds it to its metrics."""
        if self._role is not KVConnectorRole.SCHEDULER:
            return None
        before, self._told = self._told, named(self.store.counts())
        return StoreStats(dict(Counter(self._told) - Counter(before)))

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> StoreStats:
        """What `get_kv_connector_stats` has counted, in the process that logs it."""
        return StoreStats(data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> StoreMetrics:
        """The counter of the store among the metrics of vLLM."""
        return StoreMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def _ask(self, request: Request, computed: int) -> Asked | None:
        model, name = self._model(), request.request_id
        digest = "" if model is None else model.digest
        tenant, tokens = request.cache_salt or self._options.tenant, request.prompt_token_ids
        if model is None or not digest or not tenant or tokens is None:
            return None
        known = self._asked.get(name)
        if known is None or known.digest != digest:
            of_tenant = self.store.tenant(tenant, self._public_until(request))
            found = of_tenant.lookup(model, torch.tensor(tokens, dtype=torch.int64), above=computed)
            known = self._asked[name] = Asked(request, digest, found)
        return known

    def _public_until(self, request: Request) -> int:
        """How many tokens of a prompt hold nothing private, as `kv_transfer_params` say; 0 by default."""
        given = (request.kv_transfer_params or {}).get("public_until", 0)
        try:
            return whole_number("public_until", given, least=0)
        except (TypeError, SizeError) as error:
            # A client wrote it, and the engine serves others.
            if not self._has_warned:
                _log.warning("a request shares nothing, and others like it do not either: %s", error)
            self._has_warned = True
            return 0

    # In the worker.

    def start_load_kv(self, forward_context: ForwardContext, **_: Any) -> None:
        """Put stored states into the blocks of requests that wait for them."""
        for load in self._now().loads:
            load.model.put(load.tensors, load.slot)
            self._moved.add(load.request)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: a request whose state is loaded is not computed in the same step."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **_: Any) -> None:
        """Nothing: states are kept after a step, all layers together."""

    def wait_for_save(self) -> None:
        """Hand the states over that this step has made and the store wants."""
        for save in self._now().saves:
            save.lookup.save(save.tokens, save.model.taken(save.slot))

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """The requests whose states were loaded since the last call."""
        moved, self._moved = self._moved, set()
        return None, moved

    def _now(self) -> StepStates:
        step = self._get_connector_metadata()
        assert isinstance(step, StepStates)
        return step

    def _model(self) -> StoredModel | None:
        return model_of(self._vllm_config)
