"""Tokens per second of vLLM with many requests beside `TrellisLM.generate` with as many equal rows, in turn.

    OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 .venv-vllm/bin/python -m tests.vllm.throughput

Prints the median over rounds of the time of `generate` divided by that of vLLM, above 1 where vLLM is faster. Both run
on one thread of this process, and times are those of its processor, so that a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

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
            ratios, rate = _measure(name, requests, options)
            print(
                f"{name}, {requests} requests: {statistics.median(ratios):.2f}x generate, {rate:.0f} tokens/s",
                flush=True,
            )


def _measure(name: str, requests: int, options: argparse.Namespace) -> tuple[list[float], float]:
    given = prompts((options.prompt,) * requests)
    with tempfile.TemporaryDirectory() as folder:
        model = made(Path(folder), **MODELS[name])
        memory = {"kv_cache_memory_bytes": 1 << 30, "max_num_seqs": 32, "max_num_batched_tokens": 2048}
        with engine(Path(folder), **memory) as llm:
            rows = torch.tensor(given)
            both = (
                lambda: model.generate(rows, options.tokens, temperature=0),
                lambda: served(llm, given, options.tokens),
            )
            times = [[_seconds(each) for each in both] for _ in range(options.rounds + 1)][1:]
    rate = requests * options.tokens / statistics.median(vllm for _, vllm in times)
    return [alone / vllm for alone, vllm in times], rate


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
