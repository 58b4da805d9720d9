"""What vLLM is told about a model, and what it is refused."""

from __future__ import annotations

from dataclasses import replace

from vllm.config import VllmConfig
from vllm.model_executor.models.config import MambaModelConfig

from trellis_ops.errors import ServingError
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.serve.store.chain import segment_of
from trellis_ops.serve.vllm.store_options import StoreOptions
from trellis_ops.serve.vllm.stored import chosen

_FLOAT32 = ("auto", "float32")
"""Types of vLLM's cache that keep a state as it is."""


def check_model(config: TrellisConfig) -> None:
    """Raise unless tokens are the same wherever the engine splits a sequence.

    Raises:
        ServingError: a model whose result depends on where its sequences are split.
    """
    if config.decode == "exact" and replace(config, decode="chunked").keeps_starts:
        reason = (
            f"chunks of C={config.chunk} tokens would start wherever the engine splits a prompt, which changes the "
            'tokens; convert the model with decode="chunked", or train it with chunk_size=1'
        )
        raise _refusal("decode", config.decode, reason)


def check_engine(vllm_config: VllmConfig, config: TrellisConfig) -> None:
    """Raise unless the options of the engine leave the tokens of a model as they are.

    Raises:
        ServingError: with the first option that does not.
    """
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    ranks = parallel.tensor_parallel_size
    if parallel.pipeline_parallel_size > 1:
        reason = "the first and the last rank would both hold the tied embedding; use tensor_parallel_size"
        raise _refusal("pipeline_parallel_size", parallel.pipeline_parallel_size, reason)
    for name, count in (("heads", config.heads), ("mlp_width", config.mlp_width)):
        if count % ranks:
            reason = f"{name}={count} of the model is no multiple of it"
            raise _refusal("tensor_parallel_size", ranks, reason)
    if vllm_config.speculative_config is not None:
        reason = "a state that has read tokens that are then rejected cannot be taken back; leave it out"
        raise _refusal("speculative_config", vllm_config.speculative_config.method, reason)
    for name in ("mamba_cache_dtype", "mamba_ssm_cache_dtype"):
        if getattr(cache, name) not in _FLOAT32:
            raise _refusal(name, getattr(cache, name), 'states are float32; give "auto"')
    if vllm_config.model_config.quantization is not None:
        reason = "gates and step sizes do not stand it; convert a checkpoint of another type"
        raise _refusal("quantization", vllm_config.model_config.quantization, reason)
    if vllm_config.lora_config is not None:
        raise _refusal("enable_lora", True, "adapters are not applied; merge them into the weights")


def check_store(vllm_config: VllmConfig, config: TrellisConfig) -> None:
    """Raise unless the states that the engine keeps are those that a store of prefixes knows.

    Raises:
        ServingError: with the first option that makes them others.
    """
    parallel, cache = vllm_config.parallel_config, vllm_config.cache_config
    if parallel.world_size > 1:
        reason = "a store has the states of whole models; leave out the store, or serve on one rank"
        raise _refusal("tensor_parallel_size", parallel.tensor_parallel_size, reason)
    if parallel.distributed_executor_backend not in (None, "uni"):
        reason = (
            'the scheduler and the model must share a process; use "uni", and on a CPU VLLM_ENABLE_V1_MULTIPROCESSING=0'
        )
        raise _refusal("distributed_executor_backend", parallel.distributed_executor_backend, reason)
    if not cache.enable_prefix_caching:
        reason = "a store keeps the states at the ends of blocks; use --enable-prefix-caching"
        raise _refusal("enable_prefix_caching", cache.enable_prefix_caching, reason)
    segment = segment_of(config.chunk)
    if cache.block_size != segment:
        reason = f"a store keeps states after every {segment} tokens of this model; use --block-size {segment}"
        raise _refusal("block_size", cache.block_size, reason)


class TrellisModelConfig(MambaModelConfig):
    """Checks a model and the options of its engine before a process is started for it."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: VllmConfig) -> None:
        """Refuse what cannot be served right, and set the size of a block as for any model with such states."""
        config = vllm_config.model_config.hf_config.to_trellis()
        check_model(config)
        check_engine(vllm_config, config)
        super().verify_and_update_config(vllm_config)
        if chosen(vllm_config):
            check_store(vllm_config, config)
            StoreOptions.of(vllm_config.kv_transfer_config.kv_connector_extra_config)


def _refusal(name: str, value: object, reason: str) -> ServingError:
    return ServingError(engine="vLLM", name=name, value=value, reason=reason)
