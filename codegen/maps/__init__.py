"""Maps and inner losses, each written once as an expression over a row; everything else is derived from it.

A user's map is one line, `define("cubic", lambda z: z**3)`, by the functions below.
"""

from codegen.maps.expression import Expr, eps, mean, where
from codegen.maps.functions import (
    abs,
    exp,
    l2_norm,
    layer_norm,
    log,
    max,
    min,
    relu,
    rsqrt,
    sigmoid,
    sign,
    silu,
    softmax,
    sqrt,
    sum,
    tanh,
)
from codegen.maps.registry import MAPS, Map, define, define_loss, find, named_map

__all__ = [
    "MAPS",
    "Expr",
    "Map",
    "abs",
    "define",
    "define_loss",
    "eps",
    "exp",
    "find",
    "l2_norm",
    "layer_norm",
    "log",
    "max",
    "mean",
    "min",
    "named_map",
    "relu",
    "rsqrt",
    "sigmoid",
    "sign",
    "silu",
    "softmax",
    "sqrt",
    "sum",
    "tanh",
    "where",
]
