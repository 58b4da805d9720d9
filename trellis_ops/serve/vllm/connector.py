"""The connector through which an engine of vLLM keeps states of prefixes in a store, and goes on from them.

The half in the scheduler asks the store how much of a prompt it has, and says which blocks of the cache a stored state
goes into and which are worth keeping. The half in the worker moves them. Both are in one process: what the store has
found is handed over as it is.
"""

from __future__ import annotations

import logging
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
from trellis_ops.serve.store.prefix_store import Lookup
from trellis_ops.serve.vllm.store_options import StoreOptions
from trellis_ops.serve.vllm.stored import StoredModel, model_of

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
class StepStates(KVConnectorMetadata):
    """What the worker moves in one step."""

    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)


class TrellisStateConnector(KVConnectorBase_V1, SupportsHMA):
    """See the module; `StoreOptions` has what `kv_connector_extra_config` says.

    Attributes:
        store: where states are kept, in the scheduler's half.

    Raises:
        What `StoreOptions.opened` raises.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._moved: set[str] = set()
        if role is not KVConnectorRole.SCHEDULER:
            return
        self._options = StoreOptions.of(vllm_config.kv_transfer_config.kv_connector_extra_config)
        self.store = self._options.opened()
        self._block = vllm_config.cache_config.block_size
        self._lookups: dict[str, Lookup] = {}
        self._step = StepStates()

    # In the scheduler.

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens the store has beyond those in vLLM's own cache; they are loaded between two steps."""
        lookup = self._lookup(request)
        beyond = 0 if lookup is None else max(lookup.found - num_computed_tokens, 0)
        return beyond, beyond > 0

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Load the state of a prompt into the block that vLLM has allocated for it."""
        if num_external_tokens == 0:
            return
        lookup, model = self._lookups[request.request_id], self._model()
        assert model is not None
        (slots,) = blocks.get_block_ids()
        slot = slots[lookup.found // self._block - 1]
        self._step.loads.append(Load(model, request.request_id, slot, dict(lookup.tensors)))
        # A request that begins again, because it was preempted, computes what it had loaded.
        self._lookups[request.request_id] = replace(lookup, found=0, tensors={})

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepStates:
        """What the worker moves in this step: the loads, and the states at the ends of blocks that the store wants."""
        step, self._step = self._step, StepStates()
        offered, model = scheduler_output.kv_connector_block_state, self._model()
        for name, states in ({} if offered is None else offered.boundary_state_offloads).items():
            lookup = self._lookups.get(name)
            for _, slot, tokens in states:
                if model is not None and lookup is not None and tokens in lookup.wanted:
                    step.saves.append(Save(model, lookup, slot, tokens))
        return step

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request; its blocks are free at once, as states are copied in the step that makes them."""
        self._lookups.pop(request.request_id, None)
        return False, None

    def reset_cache(self) -> bool:
        """Go on as with other weights: what was stored until now is not found again."""
        model = self._model()
        if model is not None:
            model.changed()
        return model is not None

    def _lookup(self, request: Request) -> Lookup | None:
        name, model = request.request_id, self._model()
        tenant = request.cache_salt or self._options.tenant
        tokens = request.prompt_token_ids
        if model is None or not model.digest or not tenant or tokens is None:
            return None
        if name not in self._lookups:
            asked = self.store.tenant(tenant, _public_until(request))
            self._lookups[name] = asked.lookup(model, torch.tensor(tokens, dtype=torch.int64))
        return self._lookups[name]

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


def _public_until(request: Request) -> int:
    """How many tokens of a prompt hold nothing private, as `kv_transfer_params` of the request say; 0 by default."""
    given = (request.kv_transfer_params or {}).get("public_until", 0)
    try:
        return whole_number("public_until", given, least=0)
    except (TypeError, SizeError) as error:
        # A client wrote it, and the engine serves others.
        _log.warning("request %s shares nothing: %s", request.request_id, error)
        return 0
