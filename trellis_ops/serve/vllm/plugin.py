"""What vLLM calls in each of its processes when it starts."""

from __future__ import annotations

ARCHITECTURE = "TrellisForCausalLM"
"""The name in `architectures` of a `config.json`."""


def register() -> None:
    """Tell vLLM the configuration, the model and the backend; may be called again."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

    import trellis_ops.hf  # noqa: F401  # Registers the configuration with transformers.
    from trellis_ops.serve.vllm.configuration import TrellisModelConfig
    from trellis_ops.serve.vllm.pool import BACKEND
    from trellis_ops.serve.vllm.stored import CONNECTOR

    if BACKEND not in MambaAttentionBackendEnum.__members__:
        MambaAttentionBackendEnum.register(BACKEND, "trellis_ops.serve.vllm.metadata.TrellisBackend")
    MODELS_CONFIG_MAP[ARCHITECTURE] = TrellisModelConfig
    # By its name: importing the model may start a device, which processes made by a fork could not use.
    ModelRegistry.register_model(ARCHITECTURE, f"trellis_ops.serve.vllm.model:{ARCHITECTURE}")
    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, "trellis_ops.serve.vllm.connector", CONNECTOR)
