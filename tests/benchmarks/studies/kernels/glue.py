"""What the kernels between the products of a block save:

    python -m tests.benchmarks.studies.kernels.glue --preset 125M --tokens 512 4096

times a prefill, and with --train a forward and its gradient, by the kernels of `trellis_ops.glue` and by the modules
that they stand for, in turn, and prints the medians of both with their ratio; above 1 the kernels are faster.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

# Read when torch starts its threads, which must not spin while those of a kernel work.
if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "200")

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.benchmarks.turns import ratio, take_turns
from trellis_ops import glue
from trellis_ops.lm.config import PRESETS, TrellisConfig
from trellis_ops.lm.model import TrellisLM
from tuner.duration import duration
from tuner.measure.timed import Timing

_WARM = 2


def compared(model: TrellisLM, tokens: Tensor, train: bool, seconds: float) -> dict[str, Timing]:
    """Samples of one call by "kernels" and by "modules", in turn."""
    call = _trained if train else _read
    samplers = {"kernels": _timed(call, model, tokens), "modules": _by_modules(_timed(call, model, tokens))}
    for sampler in samplers.values():
        for _ in range(_WARM):
            sampler()
    return take_turns(samplers, seconds=seconds, rounds=1000, least=3)


def _read(model: TrellisLM, tokens: Tensor) -> None:
    with torch.no_grad():
        model(tokens, logits_to_keep=1)


def _trained(model: TrellisLM, tokens: Tensor) -> None:
    logits, _ = model(tokens, return_state=False)
    F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    model.zero_grad()


def _timed(call: Callable[[TrellisLM, Tensor], None], model: TrellisLM, tokens: Tensor) -> Callable[[], float]:
    def sample() -> float:
        started = time.perf_counter()
        call(model, tokens)
        return time.perf_counter() - started

    return sample


def _by_modules(sampler: Callable[[], float]) -> Callable[[], float]:
    def sample() -> float:
        own = glue.replaces_modules
        glue.replaces_modules = lambda *tensors: False
        try:
            return sampler()
        finally:
            glue.replaces_modules = own

    return sample


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    torch.manual_seed(0)
    model = TrellisLM(TrellisConfig.preset(options.preset)).requires_grad_(options.train)
    kind = "training step" if options.train else "prefill"
    for length in options.tokens:
        tokens = torch.randint(model.config.vocab_size, (options.batch, length))
        found = compared(model, tokens, options.train, options.seconds)
        times = ", ".join(f"{name} {duration(timing.seconds)}" for name, timing in found.items())
        shown = f"{kind} of {options.preset}, {options.batch} x {length} tokens, {torch.get_num_threads()} threads"
        print(f"{shown}: {times}, ratio {ratio(found['modules'], found['kernels']):.3f}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.kernels.glue", description="What kernels between products save."
    )
    parser.add_argument("--preset", choices=PRESETS, default="125M", help="the model (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="B (default: %(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 4096], help="T (default: %(default)s)")
    parser.add_argument("--train", action="store_true", help="a forward and its gradient in place of a prefill")
    parser.add_argument("--seconds", type=float, default=40.0, help="of timing each, about (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
