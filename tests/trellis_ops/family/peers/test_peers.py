"""Every rule that flash-linear-attention has a reference for, against that reference as installed.

Outputs, final states and the gradients of all inputs and initial states, by the recipe of its tests. References are
written for float32; in float64 they show that what is left is rounding.

Left out: its reference of Titans (`fla.ops.titans.naive`) leaves one of three terms of the gradient of a layer norm
undivided by D and the deviation, so it is no gradient, and its own test is skipped. The momentum delta rule is the
linear rule of Titans. The delta rules with a preconditioner carry a state beside the memory that no record has.
Kernels are compared in tests/interpreted/rules/test_peers_kernels.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.peers.float64 import in_float64
from tests.support.peers.inputs import SIZES, Drawing, Sizes
from tests.support.peers.peer import Peer, compare
from tests.support.peers.table import PEERS
from tests.support.relative_error import TOLERANCE

pytest.importorskip("fla", reason="the references are optional: make .venv/installed-peers")
pytestmark = pytest.mark.filterwarnings("ignore:Triton is not supported:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A token is too little for two threads, which would wait for one another wherever cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def size_id(sizes: Sizes) -> str:
    return f"T{sizes.tokens}-D{sizes.dim}-gate{sizes.gate}"


@pytest.mark.parametrize("sizes", SIZES, ids=size_id)
@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_a_rule_is_its_peers(peer: Peer, sizes: Sizes):
    drawn = {name: x.float() for name, x in peer.draw(sizes, Drawing()).items()}
    errors = compare(peer, drawn)
    tolerance = TOLERANCE[torch.float32]
    assert errors.output <= tolerance
    assert errors.states is None or errors.states <= tolerance
    assert errors.gradient <= 10 * tolerance, errors.worst


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_in_float64_they_agree_to_its_rounding(peer: Peer):
    drawn = peer.draw(Sizes(heads=3, batch=2, tokens=35, dim=20), Drawing())
    with in_float64():
        errors = compare(peer, drawn)
    assert errors.largest <= peer.float64, errors


def test_a_wrong_rule_is_found():
    peer = PEERS["gated_deltanet"]
    drawn = peer.draw(Sizes(tokens=9, dim=12), Drawing())
    before = PEERS["comba"].ours
    wrong = Peer(peer.name, peer.reference, peer.draw, peer.theirs, lambda given: before(given | {"probe": given["k"]}))
    with in_float64():
        errors = compare(wrong, drawn)
    assert min(errors.output, errors.states or 0.0, errors.gradient) > 1e-2
