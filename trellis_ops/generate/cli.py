"""Write on from a prompt, with the model that is shipped or one's own.

    python -m trellis_ops.generate "In the beginning"
    python -m trellis_ops.generate --model runs/mine --tokens 1000 --store states < chapter.txt

The text goes to the standard output as it is written, and what it took to the standard error.
"""

from __future__ import annotations

import argparse
import codecs
import functools
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from codegen.errors import TrellisError
from trellis_ops.errors import EmptyPromptError
from trellis_ops.generate.prefill import read, read_to_last_piece
from trellis_ops.generate.source import Source, read_model
from trellis_ops.generate.stored import open_store
from trellis_ops.lm.sampling import Sampling
from trellis_ops.lm.shipped import SHIPPED
from trellis_ops.lm.state import TrellisState
from trellis_ops.lm.state.prefixes import stored_start
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
    generator = torch.Generator().manual_seed(options.seed)
    sampling = Sampling(options.temperature, options.top_k, generator, options.top_p)
    prompt = _prompt(options.prompt)
    source = read_model(options.model)
    if options.threads is not None or source.model.count_parameters() < _FEW_PARAMETERS:
        torch.set_num_threads(options.threads or 1)
    begins = "" if options.prompt is None else prompt.decode(errors="replace")
    tokens = source.tokenizer.encode(prompt).long()[None]
    _continue(source, tokens, sampling, options.tokens, options.store, begins)


def _prompt(given: str | None) -> bytes:
    """What was typed, which need not be UTF-8, or else all of the standard input."""
    if given is None and sys.stdin.isatty():
        print("type the prompt, and end it with Ctrl-D:", file=sys.stderr)
    prompt = sys.stdin.buffer.read() if given is None else os.fsencode(given)
    if not prompt:
        raise EmptyPromptError(source="the standard input" if given is None else "the argument")
    return prompt


def _stored(source: Source, tokens: Tensor, folder: Path) -> tuple[int, TrellisState | None]:
    """How many tokens of the prompt the state holds that the store led to, and the state."""
    name = hashlib.sha256(source.tokenizer.to_json().encode()).hexdigest()
    store = open_store(folder, name)
    found = stored_start(source.model, tokens, store.tenant("me"), functools.partial(read, source.model))
    known, total = store.counts().tokens_found, tokens.shape[1]
    print(f"store: {known:,} of {total:,} tokens of the prompt were not read again", file=sys.stderr)
    return found


def _continue(source: Source, prompt: Tensor, sampling: Sampling, count: int, folder: Path | None, begins: str) -> None:
    model = source.model
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    started = time.perf_counter()
    found, state = (0, None) if folder is None else _stored(source, prompt, folder)
    piece, state = read_to_last_piece(model, prompt[:, found:], state)
    drawn = (sampling.temperature, sampling.top_k, sampling.generator)
    stream = model.stream(piece, count, *drawn, state, top_p=sampling.top_p)
    begun = time.perf_counter()
    # Behind what reading the prompt has to say, such as a warning.
    _write(begins)
    for token in stream:
        _write(decoder.decode(source.tokenizer.decode(int(token))))
    seconds = time.perf_counter() - begun
    _write(decoder.decode(b"", final=True) + "\n")
    total, size = prompt.shape[1], model.first_state(1).nbytes()
    print(f"prompt: {_speed(total, begun - started)}", file=sys.stderr)
    print(f"text: {_speed(count, seconds)}, one at a time", file=sys.stderr)
    print(f"state: {size:,} bytes after {total + count:,} tokens, as after any number", file=sys.stderr)


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
    models = (
        f"{', '.join(SHIPPED)}, a file of TrellisLM.save, a run of trellis_ops.lm.train, or a folder of transformers"
    )
    parser.add_argument("prompt", nargs="?", help="what to go on from (default: the standard input)")
    parser.add_argument("--model", default="kjv-bytes", help=f"{models} (default: %(default)s)")
    parser.add_argument("--tokens", type=count(0, MOST_TOKENS), default=200, help="tokens to write (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (default: 0.7)")
    parser.add_argument("--top-k", type=int, help="draw only from so many of the likeliest tokens (default: from all)")
    parser.add_argument("--top-p", type=float, help="draw only from the likeliest that add up to this (default: 1)")
    parser.add_argument("--seed", type=count(*_SEEDS), default=0, help="seed of the draws (default: 0)")
    stored = "folder of states of prompts: what an earlier prompt began with is not read again (needs the extra serve)"
    parser.add_argument("--store", type=Path, help=stored)
    threads = f"of the CPU (default: 1 for models of under {_FEW_PARAMETERS:,} parameters, else torch's)"
    parser.add_argument("--threads", type=count(1, MOST_THREADS), help=threads)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
