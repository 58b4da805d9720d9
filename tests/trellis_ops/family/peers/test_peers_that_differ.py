"""What some references of flash-linear-attention compute in place of their rule.

- `naive_recurrent_comba` takes z at the decayed memory. Comba (arXiv 2506.02475) takes it at the one before, as do the
  chunk form and the kernel beside that reference.
- `naive_recurrent_abc` carries memories without their log-sum-exp, so that a second call forgets how much was written;
  here it is carried, and pieces are the whole.
- `chunk_ttt_linear_ref` pads the last mini batch with tokens whose key is zero, which move its final bias nevertheless.
  Outputs and the final matrix are right.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.support.peers.float64 import in_float64
from tests.support.peers.hebbian import scaled
from tests.support.peers.inputs import Drawing, Sizes
from tests.support.peers.others import MINI_BATCH
from tests.support.peers.peer import compare
from tests.support.peers.rules import RULES
from tests.support.peers.table import PEERS
from tests.support.relative_error import relative_error
from trellis_ops.eager import recurrence
from trellis_ops.preparations import abc_gates

pytest.importorskip("fla", reason="the references are optional: make .venv/installed-peers")
pytestmark = pytest.mark.filterwarnings("ignore:Triton is not supported:UserWarning")

SIZES = Sizes(tokens=35, dim=20)
EXACT = 1e-11


def test_the_recurrent_reference_of_comba_decays_first(monkeypatch: pytest.MonkeyPatch):
    peer = PEERS["comba"]
    recurrent = replace(
        peer,
        reference="fla.ops.comba.naive:naive_recurrent_comba",
        theirs=lambda function, given: peer.theirs(
            lambda q, k, v, p, g, beta, **rest: function(q, k, v, p, beta, g, **rest), given
        ),
    )
    drawn = peer.draw(SIZES, Drawing())
    with in_float64():
        assert compare(recurrent, drawn).output > 1e-2
        monkeypatch.setitem(RULES, "comba", replace(RULES["comba"], decay_first=True))
        assert compare(recurrent, drawn).largest <= EXACT


def test_pieces_of_abc_are_the_whole_of_its_reference():
    peer = PEERS["abc"]
    drawn = peer.draw(SIZES, Drawing())
    with in_float64():
        whole, last = peer.theirs(peer.function(), drawn)
        states, lse, outputs = None, None, []
        for begin, end in ((0, 12), (12, SIZES.tokens)):
            piece = {name: x[:, begin:end] for name, x in drawn.items()}
            target, log_decay, lse = abc_gates(piece.pop("s"), lse)
            gates = {"target": target, "log_decay": log_decay, "step_size": torch.ones(SIZES.heads)}
            y, states = recurrence.attention(RULES["abc"], piece | gates | {"q": scaled(piece["q"])}, states)
            outputs.append(y)
    assert relative_error(torch.cat(outputs, dim=1), whole) <= EXACT
    assert relative_error(states["S_k"], last["S_k"].mT) <= EXACT


def test_the_padding_of_ttts_reference_moves_its_final_bias():
    peer = PEERS["ttt_linear"]
    drawn = peer.draw(SIZES, Drawing())
    padding = -SIZES.tokens % MINI_BATCH
    assert padding
    padded = dict(drawn)
    for name in ("q", "k"):
        padded[name] = F.pad(drawn[name], (0, 0, 0, 0, 0, padding))
    # The reference's target of a padded token is zero, v - k.
    padded["v"] = F.pad(drawn["v"], (0, 0, 0, 0, 0, padding))
    padded["eta"] = torch.cat([drawn["eta"], drawn["eta"][:, -1:].expand(-1, padding, -1)], dim=1)
    with in_float64():
        y, last, bias = peer.function()(
            *(drawn[name] for name in ("q", "k", "v", "weight", "bias")),
            drawn["eta"][..., None],
            mini_batch_size=MINI_BATCH,
            initial_state=drawn["S"],
            initial_state_bias=drawn["S_bias"],
            output_final_state=True,
        )
        ours, states = peer.ours(drawn)
        _, moved = peer.ours(padded)
    assert relative_error(y, ours) <= EXACT
    assert relative_error(last, states["S"]) <= EXACT
    assert relative_error(bias, moved["S_bias"]) <= EXACT
    assert relative_error(bias, states["S_bias"]) > 1e-3
