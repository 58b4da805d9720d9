"""Write on from a prompt, with the model that is shipped or one's own.

    python -m trellis_ops.generate "In the beginning"
    python -m trellis_ops.generate --model runs/mine --tokens 1000 < chapter.txt

The text goes to the standard output as it is written, and what it took to the standard error.
"""

from __future__ import annotations

import argparse
import codecs
import os
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from codegen.errors import EmptyPromptError, TrellisError
from trellis_ops.generate.prefill import read_to_last_piece
from trellis_ops.generate.source import Source, read_model
from trellis_ops.lm.sampling import Sampling
from trellis_ops.lm.shipped import SHIPPED
from trellis_ops.lm.train.options.ranges import MOST_THREADS, count
from trellis_ops.lm.train.options.settings import MOST_TOKENS
from trellis_ops.lm.train.processes.memory import memory_limits

_SEEDS = (-(2**63), 2**63 - 1)

_FEW_PARAMETERS = 4_000_000
"""A token of a smaller model takes less time than waking a second thread for each of its products does."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    try:
        with memory_limits():
            _generate(options)
    except BrokenPipeError:
        # The reader has seen enough; without this Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (TrellisError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")


def _generate(options: argparse.Namespace) -> None:
    sampling = Sampling(options.temperature, options.top_k, torch.Generator().manual_seed(options.seed))
    prompt = _prompt(options.prompt)
    source = read_model(options.model)
    if options.threads is not None or source.model.count_parameters() < _FEW_PARAMETERS:
        torch.set_num_threads(options.threads or 1)
    if options.prompt is not None:
        _write(prompt.decode(errors="replace"))
    _continue(source, source.tokenizer.encode(prompt).long()[None], sampling, options.tokens)


def _prompt(given: str | None) -> bytes:
    """What was typed, which need not be UTF-8, or else all of the standard input."""
    if given is None and sys.stdin.isatty():
        print("type the prompt, and end it with Ctrl-D:", file=sys.stderr)
    prompt = sys.stdin.buffer.read() if given is None else os.fsencode(given)
    if not prompt:
        raise EmptyPromptError(source="the standard input" if given is None else "the argument")
    return prompt


def _continue(source: Source, prompt: Tensor, sampling: Sampling, count: int) -> None:
    model = source.model
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    started = time.perf_counter()
    piece, state = read_to_last_piece(model, prompt)
    stream = model.stream(piece, count, sampling.temperature, sampling.top_k, sampling.generator, state)
    begun = time.perf_counter()
    for token in stream:
        _write(decoder.decode(source.tokenizer.decode(int(token))))
    seconds = time.perf_counter() - begun
    _write(decoder.decode(b"", final=True) + "\n")
    read, size = prompt.shape[1], model.first_state(1).nbytes()
    print(f"prompt: {_speed(read, begun - started)}", file=sys.stderr)
    print(f"text: {_speed(count, seconds)}, one at a time", file=sys.stderr)
    print(f"state: {size:,} bytes after {read + count:,} tokens, as after any number", file=sys.stderr)


def _speed(tokens: int, seconds: float) -> str:
    return f"{tokens:,} tokens in {seconds:.2f} s, {tokens / max(seconds, 1e-9):,.0f} tokens per second"


def _write(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trellis_ops.generate", description=(__doc__ or "").partition("\n")[0]
    )
    models = f"{', '.join(SHIPPED)}, a file of TrellisLM.save, or the folder of a run of trellis_ops.lm.train"
    parser.add_argument("prompt", nargs="?", help="what to go on from (default: the standard input)")
    parser.add_argument("--model", default="kjv-bytes", help=f"{models} (default: %(default)s)")
    parser.add_argument("--tokens", type=count(0, MOST_TOKENS), default=200, help="tokens to write (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (default: 0.7)")
    parser.add_argument("--top-k", type=int, help="draw only from so many of the likeliest tokens (default: from all)")
    parser.add_argument("--seed", type=count(*_SEEDS), default=0, help="seed of the draws (default: 0)")
    threads = f"of the CPU (default: 1 for models of under {_FEW_PARAMETERS:,} parameters, else torch's)"
    parser.add_argument("--threads", type=count(1, MOST_THREADS), help=threads)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
