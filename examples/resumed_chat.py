"""A chat that goes on where it stopped, also tomorrow and in another process, without reading the conversation again.

    .venv/bin/python examples/resumed_chat.py --folder my-chat "What is a slot?"
    .venv/bin/python examples/resumed_chat.py --folder my-chat "And what is a chunk?"

Each call is a turn. The folder keeps the conversation, a store key, and the states of the prefixes that were read.
Without `--model` the shipped model answers, which has read one book and holds no conversation: what is shown is how
much of it is read again.
"""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

import torch

from codegen.errors import printable
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.shipped import load_shipped
from trellis_ops.serve.store import Disk, PrefixStore

STATES_BYTES = 2**28
ANSWER_BYTES = 40


def key_of(folder: Path) -> bytes:
    """The store key, made at the first turn; nobody else may read it."""
    path = folder / "key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()


def turn(folder: Path, model: TrellisLM, said: str) -> str:
    """Answer what a user said, and say how much of the conversation was read for it."""
    store = PrefixStore(key_of(folder), [Disk(folder / "states", STATES_BYTES)], tokenizer="bytes")
    prefixes = store.tenant("me")
    history = folder / "conversation"
    before = history.read_bytes() if history.exists() else b""
    prompt = torch.tensor([list(before + f"User: {said}\nModel: ".encode())])
    whole = model.generate(prompt, ANSWER_BYTES, temperature=0, prefix_store=prefixes)
    found = store.counts().tokens_found
    print(f"[{found} of {prompt.shape[1]} bytes were not read again]")
    history.write_bytes(bytes(whole[0].tolist()) + b"\n")
    # The answer is part of the next prompt; its state is kept now, while the user reads.
    model.generate(whole, 0, prefix_store=prefixes)
    return bytes(whole[0, prompt.shape[1] :].tolist()).decode(errors="replace")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("said", help="what you say")
    parser.add_argument("--folder", type=Path, default=Path("my-chat"), help="where the chat is kept")
    parser.add_argument("--model", type=Path, help="a model of bytes that TrellisLM.save wrote")
    given = parser.parse_args(arguments)
    given.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    model = load_shipped() if given.model is None else TrellisLM.load(given.model)
    print(printable(turn(given.folder, model.eval(), given.said)))


if __name__ == "__main__":
    main()
