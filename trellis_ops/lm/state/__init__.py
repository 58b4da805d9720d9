"""What a model carries from token to token, and what is done with it: taken back, and found again by its prompt."""

from __future__ import annotations

from trellis_ops.lm.state.layer_state import AnyLayerState, LayerState, RuleLayerState
from trellis_ops.lm.state.model_state import TrellisState
from trellis_ops.lm.state.place import Place

__all__ = ["AnyLayerState", "LayerState", "Place", "RuleLayerState", "TrellisState"]
