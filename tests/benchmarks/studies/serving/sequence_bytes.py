"""What a sequence holds in memory, beside a Llama of equal size:

    python -m tests.benchmarks.studies.serving.sequence_bytes

The states are those of the model `125M` while it decodes, in float32 with the chunk-start states, and as the store
keeps them. The caches are those of `LlamaForCausalLM` of transformers in bfloat16, with as many key and value heads as
heads, and a quarter of them. One that read `MEASURED` tokens is measured, and grows by the token. Then as many states
are made as `--held` says, to see what the process holds for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch

from tests.benchmarks.studies.growth.resident import resident_bytes
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM

CONTEXTS = (1_024, 8_192, 131_072)
MEASURED = 256
MACHINE = 24e9
"""Bytes of the memory that is filled, weights included."""


def llama_bytes_per_token(config: TrellisConfig, key_value_heads: int) -> int:
    """Bytes that the cache of a Llama of the sizes of `config` grows by with a token, measured."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = LlamaConfig(
        vocab_size=256,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=key_value_heads,
    )
    model = LlamaForCausalLM(sizes).to(torch.bfloat16).eval()
    with torch.no_grad():
        read = model(torch.zeros(1, MEASURED, dtype=torch.int64), use_cache=True)
    # Versions before 5.24 call it otherwise.
    cache = read["cache"] if "cache" in read else read["past_key_values"]
    held = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
    assert held % MEASURED == 0
    return held // MEASURED


def row(name: str, sizes: Mapping[int, float], weights: float) -> str:
    """A line of the table: bytes of a sequence at each context, and how many fit beside the weights."""
    cells = [f"{sizes[context] / 1e6:,.1f} MB | {int((MACHINE - weights) / sizes[context]):,}" for context in CONTEXTS]
    return f"| {name} | {' | '.join(cells)} |"


def resident_per_state(model: TrellisLM, held: int) -> float:
    """Bytes that became resident for each of `held` states."""
    before = resident_bytes()
    states = [model.first_state(1).clone() for _ in range(held)]
    for state in states:
        for layer in state.layers:
            for each in layer.tensors().values():
                each.fill_(1.0)
    return (resident_bytes() - before) / held


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.serving.sequence_bytes", description=__doc__
    )
    parser.add_argument("--held", type=int, default=200, help="states that are held at once")
    held = parser.parse_args(arguments).held
    torch.set_num_threads(1)
    model = TrellisLM(TrellisConfig.preset("125M"))
    config, weights = model.config, 2.0 * model.count_parameters()
    state = model.first_state(1)
    stored = sum(each.nbytes for each in model.carried(state).values())
    print("| a sequence of | " + " | ".join(f"{context:,} tokens | fit 24 GB" for context in CONTEXTS) + " |")
    print("|---|" + "---|" * 2 * len(CONTEXTS))
    print(row("this model, decoding", dict.fromkeys(CONTEXTS, state.nbytes()), weights))
    print(row("this model, stored", dict.fromkeys(CONTEXTS, stored), weights))
    for name, heads in (("Llama, grouped 4 to 1", config.heads // 4), ("Llama, multi-head", config.heads)):
        per_token = llama_bytes_per_token(config, heads)
        print(row(name, {context: per_token * context for context in CONTEXTS}, weights))
    print(f"{held} states held at once: {resident_per_state(model, held) / 1e6:.2f} MB resident for each")


if __name__ == "__main__":
    main()
