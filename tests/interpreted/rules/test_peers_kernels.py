"""Rules beside kernels of flash-linear-attention, where it has no reference of the rule, or one of another rule.

Its references are compared in tests/trellis_ops/family/peers/test_peers.py. Of gated Oja it has none installed;
`naive_recurrent_comba` takes z at the decayed memory, and this kernel shows that Comba does not.
"""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.support.peers.inputs import Drawing, Sizes
from tests.support.peers.table import PEERS
from tests.support.relative_error import TOLERANCE, assert_close

pytest.importorskip("fla", reason="the kernels are optional: make .venv/installed-peers")
pytestmark = pytest.mark.filterwarnings("ignore:Triton is not supported:UserWarning")

KERNELS = {
    "oja": ("fla.ops.gated_oja_rule:fused_recurrent_gated_oja_rule", {"log_decay": "gv", "step_size": "beta"}),
    "comba": ("fla.ops.comba:fused_recurrent_comba", {"log_decay": "g", "step_size": "beta", "probe": "p"}),
}
"""By the name of the rule: the kernel's function, and what it calls its tensors."""


@pytest.mark.parametrize("sizes", [Sizes(tokens=35, dim=32), Sizes(tokens=63, dim=60, gate=0.1)], ids=str)
@pytest.mark.parametrize("rule", KERNELS)
def test_a_rule_is_its_peers_kernel(rule: str, sizes: Sizes):
    reference, names = KERNELS[rule]
    module, _, function = reference.partition(":")
    drawn = {name: x.float() for name, x in PEERS[rule].draw(sizes, Drawing()).items()}
    given = {names.get(name, name): x for name, x in drawn.items() if name != "S"}
    kernel = getattr(importlib.import_module(module), function)
    y, last = kernel(**given, scale=sizes.dim**-0.5, initial_state=drawn["S"], output_final_state=True)
    ours, states = PEERS[rule].ours(drawn)
    assert_close(ours, y, TOLERANCE[torch.float32], "output")
    assert_close(states["S"], last, TOLERANCE[torch.float32], "final state")
