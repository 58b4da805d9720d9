"""What stands around the memories of a block: the sizes that a decode step of the whole block is compiled for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from codegen.errors import DtypeError, SizeError
from codegen.scalars import whole_number

WEIGHTS = ("float32", "bfloat16", "int8")
"""The types that weights of a decode step are packed in; int8 has a float32 scale for each output."""

LARGEST = 2**24
"""Of a width: far above any model that was made."""

FEWEST_TAPS = 2
"""A convolution of one tap carries no tail."""

_POOL = "-pool"
_KEY = re.compile(rf"W(\d+)-F(\d+)-K(\d+)-(unit|free)-(\w+)({_POOL})?")


@dataclass(frozen=True)
class Layer:
    """Sizes of a block beside those of its memories, or of the map from features to logits.

    Attributes:
        width: of the residual stream.
        hidden: of the SwiGLU; of a map to logits, the size of the vocabulary.
        taps: tokens that the short convolutions see, the current one included.
        unit: whether q, k and v have length one.
        weights: one of `WEIGHTS`.
        pooled: whether the states of a row lie in a slot of pools, and not in the row itself.

    Raises:
        SizeError, DtypeError: a field outside its range; NumberTypeError: a size that is no int.
    """

    width: int
    hidden: int
    taps: int = 4
    unit: bool = True
    weights: str = "float32"
    pooled: bool = False

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("hidden", 1), ("taps", FEWEST_TAPS)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), LARGEST, least=least))
        for name in ("unit", "pooled"):
            if not isinstance(getattr(self, name), bool):
                raise SizeError(name=name, value=getattr(self, name), expected="True or False")
        if self.weights not in WEIGHTS:
            raise DtypeError(name="weights", dtype=self.weights, expected=" or ".join(WEIGHTS))

    def key(self) -> str:
        """Stable text key."""
        unit = "unit" if self.unit else "free"
        return f"W{self.width}-F{self.hidden}-K{self.taps}-{unit}-{self.weights}{_POOL if self.pooled else ''}"


def layer_of_key(key: str) -> Layer:
    """The layer whose `key()` this is.

    Raises:
        ValueError: it is none.

    Example:
        >>> layer_of_key(Layer(768, 2048).key()).hidden
        2048
    """
    found = _KEY.fullmatch(key)
    if found is None:
        raise ValueError(f"{key!r} describes no layer")
    width, hidden, taps, unit, weights, pool = found.groups()
    return Layer(int(width), int(hidden), int(taps), unit == "unit", weights, pool is not None)
