"""Tokens per second of vLLM with many requests beside `TrellisLM.generate` with as many equal rows, in turn.

    OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 .venv-vllm/bin/python -m tests.vllm.throughput

Prints the median over rounds of the time of `generate` divided by that of vLLM, above 1 where vLLM is faster, and the
limit of this ratio in the same run: the time of `generate` divided by the sum of its own and vLLM's for a model that
computes nothing, which is vLLM's work for its steps and requests. All run on one thread of this process, and times are
those of its processor, so that a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm import LLM

from tests.vllm.engines import engine, made, prompts, served

MODELS = {
    "tiny": {"width": 128, "heads": 4, "num_slots": 32, "chunk_size": 16},
    "21M": {"layers": 6, "width": 512, "heads": 8, "num_slots": 64, "chunk_size": 64},
}


def main() -> None:
    """Measure every model and number of requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens after each")
    options = parser.parse_args()
    for name in options.model:
        for requests in options.requests:
            rounds = _measure(name, requests, options)
            ratio = statistics.median(each.generate / each.vllm for each in rounds)
            limit = statistics.median(each.generate / (each.generate + each.empty) for each in rounds)
            rate = requests * options.tokens / statistics.median(each.vllm for each in rounds)
            print(
                f"{name}, {requests} requests: {ratio:.2f}x generate, limit {limit:.2f}x, share {ratio / limit:.0%}, "
                f"{rate:.0f} tokens/s",
                flush=True,
            )


@dataclass(frozen=True)
class _Round:
    """Seconds of the processor for the same tokens: of `generate`, of vLLM, and of vLLM with an empty model."""

    generate: float
    vllm: float
    empty: float


def _measure(name: str, requests: int, options: argparse.Namespace) -> list[_Round]:
    given = prompts((options.prompt,) * requests)
    with tempfile.TemporaryDirectory() as folder:
        model = made(Path(folder), **MODELS[name])
        memory = {"kv_cache_memory_bytes": 1 << 30, "max_num_seqs": 32, "max_num_batched_tokens": 2048}
        with engine(Path(folder), **memory) as llm:
            rows = torch.tensor(given)
            return [
                _Round(
                    _seconds(lambda: model.generate(rows, options.tokens, temperature=0)),
                    _seconds(lambda: served(llm, given, options.tokens)),
                    _seconds_of_empty_model(llm, lambda: served(llm, given, options.tokens)),
                )
                for _ in range(options.rounds + 1)
            ][1:]


def _seconds_of_empty_model(llm: LLM, run: Callable[[], object]) -> float:
    """The time of `run` while the model of the engine computes nothing and gives the same logits to every token."""
    llm.apply_model(_empty)
    try:
        return _seconds(run)
    finally:
        llm.apply_model(_restore)


def _empty(model: Any) -> None:
    width, vocabulary = model.norm.weight.numel(), model.logits_processor.vocab_size
    model.forward = lambda input_ids, *_, **__: torch.zeros(len(input_ids), width)
    model.compute_logits = lambda hidden: torch.zeros(len(hidden), vocabulary)


def _restore(model: Any) -> None:
    del model.forward, model.compute_logits


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
