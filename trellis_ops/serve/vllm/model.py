"""The reference language model as vLLM runs it: a flat batch of tokens of many sequences, and states in its cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFunc, get_temporal_copy_spec
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import HasInnerState, IsAttentionFree, SupportsMambaPrefixCaching
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.sequence import IntermediateTensors
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.decode.applies import Parts, is_seen
from trellis_ops.lm.decode.decoder import forget
from trellis_ops.serve.vllm.block import ServedBlock, served_shapes
from trellis_ops.serve.vllm.configuration import check_engine, check_model, check_store
from trellis_ops.serve.vllm.decode import DecodeSteps
from trellis_ops.serve.vllm.parallel import of_one_rank
from trellis_ops.serve.vllm.pool import STATE_DTYPE
from trellis_ops.serve.vllm.stored import StoredModel, chosen, enter

_NAMES = WeightsMapper(orig_to_new_prefix={"model.": ""})
"""From the names of parameters in a checkpoint to those here."""

MambaTypes = set[MambaAttentionBackendEnum]


class TrellisForCausalLM(nn.Module, HasInnerState, IsAttentionFree, SupportsMambaPrefixCaching):
    """A `TrellisLM` under vLLM, with the parameters of a checkpoint of `trellis_ops.hf`.

    Args:
        vllm_config: of the engine.
        prefix: of the names of layers.

    Raises:
        ServingError: a model, or an option of the engine, with which tokens would not be those of the model alone.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        hf_config = vllm_config.model_config.hf_config
        config = hf_config.to_trellis()
        check_model(config)
        check_engine(vllm_config, config)
        self._ranks = get_tensor_model_parallel_world_size()
        self._own = own = of_one_rank(config, self._ranks)
        self.embedding = VocabParallelEmbedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(
            ServedBlock(own, vllm_config, f"{prefix}.blocks.{index}".lstrip(".")) for index in range(config.layers)
        )
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.lm_head = (
            self.embedding if hf_config.tie_word_embeddings else ParallelLMHead(config.vocab_size, config.width)
        )
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self._states = len(served_shapes(own))
        self._steps = DecodeSteps([block.pool for block in self._blocks()])
        # A pooler reads what `forward` gives, and nobody asks for logits.
        self._is_pooled = vllm_config.model_config.runner_type == "pooling"
        self._is_whole = True
        self._stored = StoredModel(config, vllm_config.model_config.dtype, self)
        self._keeps = chosen(vllm_config)
        if self._keeps:
            # Again: a platform may have chosen another process for the model since.
            check_store(vllm_config, config)
            enter(vllm_config, self._stored)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """`[tokens]` to `[tokens, width]`."""
        embedded: Tensor = self.embedding(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """What `compute_logits` takes, or the normed rows for a pooler; moves the states of the sequences of this step.

        `[tokens, width]`.
        """
        x = self._steps.blocks(self, input_ids, inputs_embeds)
        self._is_whole = x is not None or self._is_pooled or is_seen(self.blocks[-1])
        if x is None:
            if inputs_embeds is None:
                assert input_ids is not None
                inputs_embeds = self.embed_input_ids(input_ids)
            x = self._by_modules(inputs_embeds)
        return cast(Tensor, self.norm(x)) if self._is_pooled else x

    def _by_modules(self, x: Tensor) -> Tensor:
        """What the blocks make of tokens, but for the last feed-forward half where `compute_logits` takes it."""
        *others, last = self._blocks()
        for block in others:
            x = block(x)
        return last(x) if self._is_whole else last.remember(x)

    def _blocks(self) -> list[ServedBlock]:
        return [cast(ServedBlock, each) for each in self.blocks]

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits of the next tokens, on the ranks that sample."""
        if self._is_whole:
            logits = self._steps.logits(hidden_states)
            return self._logits(hidden_states) if logits is None else logits
        # What has no state is left to here, as logits are asked of few tokens of a prompt.
        return self._logits(self._blocks()[-1].feed_forward(hidden_states))

    def _logits(self, x: Tensor) -> Tensor | None:
        logits: Tensor | None = self.logits_processor(self.lm_head, self.norm(x))
        return logits

    def step_parts(self) -> Parts:
        """What a token of every sequence goes through, for the kernels that stand for it."""
        is_map, is_table = self._is_plain_map(), self._is_plain_table()
        left_out = (*[self.logits_processor] * is_map, *[self.embedding] * is_table)
        output = (self.norm, self.embedding) if is_map else None
        return Parts(self._own, self.blocks, output, (self, self.blocks), left_out)

    def _is_plain_map(self) -> bool:
        """Whether the logits are products with the embedding, all of which is here, and nobody sees them made."""
        # Several ranks share the embedding.
        if self._is_pooled or self._ranks > 1 or self.lm_head is not self.embedding:
            return False
        return type(self.logits_processor) is LogitsProcessor and not is_seen(self.logits_processor)

    def _is_plain_table(self) -> bool:
        """Whether the embedding of a token is a row of the weight of `embedding`, and nobody sees it looked up."""
        return self._ranks == 1 and type(self.embedding) is VocabParallelEmbedding and not is_seen(self.embedding)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take the weights of a checkpoint by name, and say which were taken."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=_NAMES)
        # vLLM loads weights again through `data`, which counts as no change of them.
        forget(self)
        if self._keeps:
            self._stored.loaded(self._of_reference_model())
        return loaded

    def _of_reference_model(self) -> dict[str, Tensor]:
        """The weights as `TrellisLM` has them: without rows that fill up the vocabulary, and without `lm_head`."""
        found = {name: each for name, each in self.state_dict().items() if not name.startswith("lm_head.")}
        found["embedding.weight"] = found["embedding.weight"][: self._stored.config.vocab_size]
        return found

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        """The shapes of the states of one layer on one rank."""
        return tuple(served_shapes(_own(vllm_config)).values())

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        """The types of the states of one layer."""
        return (STATE_DTYPE,) * len(served_shapes(_own(vllm_config)))

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[MambaStateCopyFunc, ...]:
        """How a state is copied to another block; `get_mamba_state_copy_funcs` says it for all of a model's."""
        return (get_temporal_copy_spec,)

    def get_mamba_state_copy_funcs(
        self, mamba_types: MambaTypes
    ) -> dict[MambaAttentionBackendEnum, tuple[MambaStateCopyFunc, ...]]:
        """How each state is copied to another block: whole, since none is a window that moves."""
        return dict.fromkeys(mamba_types, self.get_mamba_state_copy_func() * self._states)


def _own(vllm_config: VllmConfig) -> TrellisConfig:
    config = vllm_config.model_config.hf_config.to_trellis()
    return of_one_rank(config, vllm_config.parallel_config.tensor_parallel_size)
