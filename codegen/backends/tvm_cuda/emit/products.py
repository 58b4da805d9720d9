"""Who multiplies the matrices of a tile: tensor cores, or multiply-adds where the dots are "ieee".

The latter also serve tiles too small for tensor cores, and GPUs that have none of these types.
"""

from __future__ import annotations

from codegen.backends.tvm_cuda.emit import multiply_adds, tensor_cores
from codegen.backends.tvm_cuda.emit.sums import Multiplier
from codegen.backends.tvm_cuda.emit.tile import Tile


def multiplier(tile: Tile) -> Multiplier:
    """The module that multiplies."""
    return multiply_adds if tile.dots == "ieee" else tensor_cores
