"""The reference model in transformers: importing this registers it with `AutoConfig` and the Auto classes of models.

Source: docs/hugging-face.md has its use. `pip install 'trellis-ops[hf]'` installs what it imports.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from trellis_ops.hf.cache.state import TrellisCache
from trellis_ops.hf.configuration import TrellisHFConfig
from trellis_ops.hf.modeling import TrellisForCausalLM, TrellisModel
from trellis_ops.hf.tokenizer import bpe_tokenizer, byte_tokenizer

__all__ = ["TrellisCache", "TrellisForCausalLM", "TrellisHFConfig", "TrellisModel", "bpe_tokenizer", "byte_tokenizer"]

AutoConfig.register(TrellisHFConfig.model_type, TrellisHFConfig, exist_ok=True)
AutoModel.register(TrellisHFConfig, TrellisModel, exist_ok=True)
AutoModelForCausalLM.register(TrellisHFConfig, TrellisForCausalLM, exist_ok=True)
