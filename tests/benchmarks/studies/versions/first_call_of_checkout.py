"""The first calls of one process of one checkout: what `first_calls` runs in many processes of each.

It is run as text in the folder of a checkout and imports nothing of this project but `trellis_ops` by its public names,
with tensors by position, so that it runs on checkouts that differ in everything else. "calls" runs `trellis_attention`
and then `trellis_step`, "training" a `trellis_attention` and its reverse pass. A line of JSON comes out: the seconds of
each by its name, those of `import trellis_ops` after torch, and "both", of the import and a `trellis_attention`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

_TOKENS, _HEADS, _DIM = 64, 8, 64

seconds: dict[str, float] = {}


def spend(name: str, call: Callable[[], object]) -> None:
    """Add the seconds of a call to `seconds`."""
    started = time.perf_counter()
    call()
    seconds[name] = time.perf_counter() - started


def main(what: str) -> None:
    """Run the calls of one kind and print what they took."""
    spend("import trellis_ops", lambda: __import__("trellis_ops"))
    import trellis_ops

    q, k, v, target = (torch.randn(1, _TOKENS, _HEADS, _DIM) for _ in range(4))
    given = [q, k, v, target, -torch.rand(1, _TOKENS, _HEADS), torch.full((_HEADS,), 0.1)]
    if what == "calls":
        spend("trellis_attention", lambda: trellis_ops.trellis_attention(*given))
        seconds["both"] = sum(seconds.values())
        states = (torch.zeros(1, _HEADS, _DIM, _DIM), torch.zeros(1, _HEADS, _DIM, _DIM))
        token = [x[:, 0].contiguous() for x in given[:5]]
        spend("trellis_step after it", lambda: trellis_ops.trellis_step(*token, given[5], states))
    else:
        leaves = [x.requires_grad_() for x in given]

        def trained() -> None:
            trellis_ops.trellis_attention(*leaves)[0].sum().backward()

        del seconds["import trellis_ops"]
        spend("trellis_attention and its reverse pass", trained)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1])
