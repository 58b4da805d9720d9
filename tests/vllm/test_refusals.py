"""Models and options with which tokens would not be those of the model alone are refused before a worker starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.vllm.engines import alone, engine, made, prompts, served

OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "pipeline parallel": ({"pipeline_parallel_size": 2}, "(?i)pipeline.parallel"),
    "tensor parallel over no whole heads": ({"tensor_parallel_size": 3}, "heads"),
    "draft tokens": (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
        "speculative_config='ngram'",
    ),
    "states of another type": ({"mamba_ssm_cache_dtype": "bfloat16"}, "mamba_ssm_cache_dtype='bfloat16'"),
    "a cache of another type": ({"mamba_cache_dtype": "bfloat16"}, "mamba_cache_dtype='bfloat16'"),
    "adapters": ({"enable_lora": True}, "enable_lora"),
    "quantization": ({"quantization": "fp8"}, "quantization"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_refused_with_the_reason(name: str, tmp_path: Path):
    options, reason = OPTIONS[name]
    made(tmp_path)
    with pytest.raises(Exception, match=reason), engine(tmp_path, **options):
        pass


def test_exact_decoding_of_chunks_is_refused_with_the_reason(tmp_path: Path):
    made(tmp_path, decode="exact")
    with pytest.raises(ValueError, match=r"(?s)decode='exact'.*wherever the engine splits"), engine(tmp_path):
        pass


def test_exact_decoding_is_served_where_chunks_change_nothing(tmp_path: Path):
    model = made(tmp_path, rule="gla", decode="exact")
    given = prompts((3, 40))
    with engine(tmp_path, max_num_batched_tokens=13) as llm:
        assert served(llm, given, 4) == [alone(model, each, 4) for each in given]
