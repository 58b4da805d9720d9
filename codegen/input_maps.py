"""How q, k and v come from the linear maps of a token mixer, as the kernels between them are compiled for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from codegen.errors import SizeError
from codegen.scalars import whole_number

FEWEST_TAPS = 2
"""A convolution of one tap carries no tail."""

MOST_TAPS = 16
"""Each is a term of the kernels' text."""

_KEY = re.compile(r"K(\d+)-k(unit|free)-v(unit|free)")


@dataclass(frozen=True)
class InputMaps:
    """What a token mixer makes of its projections.

    Attributes:
        taps: tokens that the short convolutions of q and k see, the current one included.
        unit_keys: whether q and k are divided by their lengths.
        unit_values: whether v is; where it is not, nothing is left to do with it.

    Raises:
        SizeError: a field outside its range; NumberTypeError: taps that are no int.
    """

    taps: int = 4
    unit_keys: bool = True
    unit_values: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "taps", whole_number("taps", self.taps, MOST_TAPS, least=FEWEST_TAPS))
        for name in ("unit_keys", "unit_values"):
            if not isinstance(getattr(self, name), bool):
                raise SizeError(name=name, value=getattr(self, name), expected="True or False")

    def key(self) -> str:
        """Stable text key."""
        keys, values = ("unit" if each else "free" for each in (self.unit_keys, self.unit_values))
        return f"K{self.taps}-k{keys}-v{values}"


def input_maps_of_key(key: str) -> InputMaps:
    """The maps whose `key()` this is.

    Raises:
        ValueError: they are none.

    Example:
        >>> input_maps_of_key("K4-kunit-vfree").unit_values
        False
    """
    found = _KEY.fullmatch(key)
    if found is None:
        raise ValueError(f"{key!r} describes no maps from projections to q, k and v")
    taps, keys, values = found.groups()
    return InputMaps(int(taps), keys == "unit", values == "unit")
