"""What a token costs: beside reading the weights once, by type of weights and number of rows, and beside Llama."""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from codegen.device import Device
from tests.benchmarks.decode.llama import llama_like, llama_prompt, llama_steps
from tests.benchmarks.decode.loss import losses
from tests.benchmarks.decode.timing import generating, in_turn, model_of, reading, steps
from tests.benchmarks.results.replay import Replay
from tests.benchmarks.results.summary import Results
from tests.benchmarks.results.targets import Target
from tests.benchmarks.turns import ratio
from trellis_ops.lm.decode.decoder import packed_bytes
from trellis_ops.lm.shipped import load_shipped

SIZE = "125M"
LEAST_OF_TINY = 20_000.0
LEAST_SHARE = 0.85
TIMES_THAT = {"float32": 1.0, "bfloat16": 1.7, "int8": 3.0}
ROWS, LEAST_OF_ROWS = 16, 6.0
EVERY_ROWS = (1, 2, 4, 8, ROWS, 32, 64)
LEAST_OF_DECODE = {512: 1.5, 4096: 4.0, 16_384: 15.0}
LEAST_OF_PREFILL = {512: 1.0, 4096: 1.3, 16_384: 2.5}
SECONDS, MOST_ROUNDS = 20.0, 15
_TOKENS, _STEADY, _TINY_TOKENS = 4, 16, 500


@pytest.fixture(autouse=True)
def only_on_cpus(device: Device, replay: Replay) -> None:
    if device.kind != "cpu":
        replay.skip("these targets are for CPUs")


def test_tiny(results: Results, replay: Replay) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = model_of("tiny", "float32")
    timing = in_turn({"tiny": generating(model, _TINY_TOKENS)}, SECONDS, MOST_ROUNDS)["tiny"]
    torch.set_num_threads(threads)
    rate = 1 / timing.seconds
    name = "tokens per second of `generate` with the model `tiny` on one thread"
    results.targets.append(Target(name, rate, LEAST_OF_TINY, True, shown="{:,.0f}".format))
    replay("a token of tiny", timing.samples)


def test_weights_from_memory(results: Results, replay: Replay) -> None:
    models = {weights: model_of(SIZE, weights) for weights in TIMES_THAT}
    samplers = {weights: steps(model, model.first_state(1), _STEADY) for weights, model in models.items()}
    packed = models["float32"]
    packed.step(torch.zeros(1, dtype=torch.int64), packed.first_state(1))
    weights = torch.randn(packed_bytes(packed) // 4)
    timings = in_turn({"reading": reading(weights), **samplers}, SECONDS, MOST_ROUNDS)
    rate = weights.nbytes / timings["reading"].seconds / 1e9
    results.remarks.append(
        f"{SIZE} on {torch.get_num_threads()} threads: {1 / timings['float32'].seconds:,.1f} tokens per second, its"
        f" {weights.nbytes / 1e6:,.0f} MB of float32 weights are read alone at {rate:.1f} GB/s"
    )
    for kind, times in TIMES_THAT.items():
        name = f"tokens of {SIZE} with {kind} weights, to readings of the float32 weights"
        found = ratio(timings["reading"], timings[kind])
        results.targets.append(Target(name, found, LEAST_SHARE * times, True))
    replay(f"a token of {SIZE}", timings["float32"].samples)


def test_several_rows(results: Results, replay: Replay) -> None:
    model = model_of(SIZE, "float32")
    timings = in_turn(
        {str(rows): steps(model, model.first_state(rows), _STEADY) for rows in EVERY_ROWS}, SECONDS, MOST_ROUNDS
    )
    times = {rows: rows * ratio(timings["1"], timings[str(rows)]) for rows in EVERY_ROWS}
    name = f"tokens per second of {ROWS} rows to those of one"
    results.targets.append(Target(name, times[ROWS], LEAST_OF_ROWS, True))
    shown = ", ".join(f"{found:.2f} of {rows}" for rows, found in times.items())
    results.remarks.append(f"{SIZE}, tokens per second by rows, to those of one: {shown}")
    replay(f"a token of {ROWS} rows of {SIZE}", timings[str(ROWS)].samples)


def test_beside_llama(results: Results, replay: Replay) -> None:
    pytest.importorskip("transformers")
    model = model_of(SIZE, "float32")
    llama = llama_like(model.config)
    own = steps(model, model.first_state(1), _TOKENS)
    samplers = {str(context): llama_steps(llama, context, _TOKENS) for context in LEAST_OF_DECODE}
    timings = in_turn({"own": own, **samplers}, SECONDS, MOST_ROUNDS)
    for context, least in LEAST_OF_DECODE.items():
        name = f"decode of {SIZE}: tokens per second to Llama's after {context:,} tokens"
        results.targets.append(Target(name, ratio(timings[str(context)], timings["own"]), least, True))
    replay(f"a token of {SIZE} in turn with Llama's", timings["own"].samples)


@pytest.mark.parametrize("tokens", LEAST_OF_PREFILL)
def test_prompts_beside_llama(tokens: int, results: Results, replay: Replay) -> None:
    pytest.importorskip("transformers")
    model = model_of(SIZE, "float32")
    prompt = torch.randint(0, model.config.vocab_size, (1, tokens))

    @torch.no_grad()
    def own() -> float:
        started = time.perf_counter()
        list(model.stream(prompt, 1, temperature=0))
        return time.perf_counter() - started

    samplers = {"own": own, "llama": llama_prompt(llama_like(model.config), tokens)}
    timings = in_turn(samplers, SECONDS, MOST_ROUNDS)
    name = f"prefill of {SIZE}: speed to Llama's at {tokens:,} tokens"
    least = LEAST_OF_PREFILL[tokens]
    results.targets.append(Target(name, ratio(timings["llama"], timings["own"]), least, True))
    replay(f"a prompt of {tokens}", timings["own"].samples)


def test_loss_by_weights(results: Results, replay: Replay, request: pytest.FixtureRequest) -> None:
    """No target: what narrower weights cost is for the user to judge."""
    text = request.config.getoption("--text")
    if text is None:
        replay.skip("--text names no King James Bible; docs/training.md has the commands that write kjv.txt")
    found = losses(load_shipped("kjv-bytes"), text, tuple(TIMES_THAT))
    bits = {weights: statistics.fmean(each) for weights, each in found.items()}
    shown = ", ".join(f"{each:.4f} with {weights}" for weights, each in bits.items())
    results.remarks.append(f"bits per byte of the shipped model on text that it has not seen: {shown} weights")
    replay("bits per byte", list(found["float32"]))
