"""Heads and hidden units shared by two processes, which sum over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.vllm.engines import alone, engine, made, prompts, served

MODELS: dict[str, dict[str, Any]] = {
    "TRELLIS, a learned first state": {"learned_state": True, "step_size": "token"},
    "a rule with maps of low rank and parameters of heads": {"rule": "kda", "chunk_size": None},
}


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_say_what_the_model_says_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Two ranks and the process that schedules are three, which two cores could not give one each.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    model = made(tmp_path, layers=1, **MODELS[name])
    given = prompts((1, 17, 40))
    with engine(tmp_path, tensor_parallel_size=2, poisoned=False) as llm:
        assert served(llm, given, 8) == [alone(model, each, 8) for each in given]
