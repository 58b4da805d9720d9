"""Rules beside kernels of flash-linear-attention, where it has no reference of the rule, or one of another rule.

Its references are compared in tests/trellis_ops/family/peers/test_peers.py. Of gated Oja it has none installed;
`naive_recurrent_comba` takes z at the decayed memory, and this kernel shows that Comba does not. What a GPU run times a
rule's step beside is the step of the same rule.
"""

from __future__ import annotations

import importlib

import pytest
import torch

from codegen.device import cpu
from codegen.recurrence.tensors import states, tensors
from codegen.rules import NAMED
from codegen.spec import Problem, Spec
from tests.support.peers.inputs import Drawing, Sizes
from tests.support.peers.table import PEERS
from tests.support.relative_error import TOLERANCE, assert_close
from trellis_ops.eager import recurrence
from tuner.measure.baselines.rule_rivals import KERNELS as RIVALS
from tuner.measure.baselines.rule_rivals import rule_rival
from tuner.verify.inputs.trellis import make_inputs

pytest.importorskip("fla", reason="the kernels are optional: make .venv/installed-peers")
pytestmark = pytest.mark.filterwarnings("ignore:Triton is not supported:UserWarning")

KERNELS = {
    "oja": ("fla.ops.gated_oja_rule:fused_recurrent_gated_oja_rule", {"log_decay": "gv", "step_size": "beta"}),
    "comba": ("fla.ops.comba:fused_recurrent_comba", {"log_decay": "g", "step_size": "beta", "probe": "p"}),
}
"""By the name of the rule: the kernel's function, and what it calls its tensors."""

# Two tune themselves when they are first called, which takes a card.
STEPS = [name for name, each in RIVALS.items() if each.step and name not in ("linear", "rwkv7")]
"""Rules with a kernel for one token that runs here."""


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


@pytest.mark.parametrize("name", STEPS)
def test_the_step_that_a_rule_is_timed_beside_computes_the_rule(name: str):
    spec = Spec(NAMED[name].rule, Problem("memory_step", 2, 1, 3, 32, 32, 32, 1))
    y = rule_rival(RIVALS[name].step, spec, cpu()).run()
    inputs = make_inputs(spec, (1, 1), cpu(), drawn_there=True)
    given = {each.name: inputs[each.name] for each in tensors(spec.rule)}
    wanted = recurrence.step(spec.rule, given, {each: inputs[each].clone() for each in states(spec.rule)})
    assert_close(y[:, 0], wanted, TOLERANCE[torch.float32], "output")
