"""Packed weights hold every weight once, at the place that the layout says."""

from __future__ import annotations

import pytest
import torch

from codegen.kernels.layer.layout import PANEL, layout_of
from tests.trellis_ops.lm.decode.models import CHUNKED, EXACT, model_of
from trellis_ops.lm.decode.packing import pack_block, pack_logits, quantized
from trellis_ops.lm.decode.specs import block_spec, block_states, logits_spec


def test_every_weight_is_where_the_layout_says():
    model = model_of(EXACT)
    spec = block_spec(model.config, 1, "float32")
    block, layout = model.blocks[0], layout_of(spec)
    packed = pack_block(block, spec)

    def at(name: str, output: int, column: int) -> float:
        matrix = layout.matrices[name]
        panel, lane = divmod(output, PANEL)
        return float(packed.weights[matrix.first + (panel * matrix.columns + column) * PANEL + lane])

    gate = layout.matrices["projections"].start("gate")
    assert at("projections", gate + 4, 7) == float(block.mixer.to_gate.weight[4, 7])
    assert at("out", 35, 20) == float(block.mixer.to_out.weight[35, 20])
    # A panel of the gate, then one of what it lets pass.
    assert at("gate_up", 3, 1) == float(block.mlp.gate.weight[3, 1])
    assert at("gate_up", PANEL + 3, 1) == float(block.mlp.up.weight[3, 1])
    assert at("gate_up", 3 * PANEL + 5, 1) == float(block.mlp.up.weight[PANEL + 5, 1])
    assert at("down", 9, 70) == float(block.mlp.down.weight[9, 70])
    assert packed.weights.isfinite().all()
    weights = sum(each.weight.numel() for each in block.modules() if isinstance(each, torch.nn.Linear))
    assert int((packed.weights != 0).sum()) == weights


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_narrow_weights_lie_in_words(weights):
    """32 bits have the weights of one output; of int8 the even bytes are the first two inputs."""
    model = model_of(EXACT)
    spec = block_spec(model.config, 1, weights)
    packed, matrix = pack_block(model.blocks[0], spec), layout_of(spec).matrices["down"]
    down = model.blocks[0].mlp.down.weight
    rows = down.bfloat16() if weights == "bfloat16" else quantized(down)[0]
    places = {"bfloat16": {0: 0, 1: 1}, "int8": {0: 0, 1: 2, 2: 1, 3: 3}}[weights]
    together = len(places)
    for output, column in ((0, 0), (9, 70), (35, 1), (20, 2)):
        panel, lane = divmod(output, PANEL)
        word = (panel * matrix.words + column // together) * PANEL + lane
        assert packed.weights[matrix.first + word * together + places[column % together]] == rows[output, column]


def test_int8_is_off_by_half_a_level_at_most():
    weights = torch.randn(3, 40, 50) * torch.rand(3, 40, 1)
    weights[1, 2] = 0.0
    levels, scale = quantized(weights)
    assert levels.dtype == torch.int8
    assert int(levels.abs().amax()) == 127
    assert ((levels * scale[..., None] - weights).abs() <= 0.5001 * scale[..., None]).all()
    assert scale[1, 2] == 1.0


def test_the_scales_of_an_embedding_follow_its_norm():
    model = model_of(EXACT)
    spec = logits_spec(model.config, 1, "int8")
    packed = pack_logits(model.norm, model.embedding.weight, spec)
    place = layout_of(spec).vectors["embedding_scales"]
    scales = packed.vectors[place.first : place.first + 256]
    torch.testing.assert_close(scales, model.embedding.weight.abs().amax(1) / 127)


@pytest.mark.parametrize("config", [CHUNKED, EXACT], ids=["chunked", "exact"])
def test_a_kernel_takes_the_states_that_a_layer_has(config):
    """The order is the kernel's, and its tests find one that is not; the names are those of the layer."""
    model = model_of(config)
    assert set(block_states(model.config)) == set(model.blocks[0].mixer.state_shapes(1))
    assert set(block_states(model.config)) == set(model.first_state(1).layers[0].tensors())
