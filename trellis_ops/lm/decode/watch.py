"""Whether a model is still what its weights were packed from, asked before every token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn

from trellis_ops.glue.surroundings import HOOKS
from trellis_ops.lm.decode.applies import OVERRIDES

_version_of = attrgetter("_version")


@dataclass(frozen=True)
class Watch:
    """What packed weights were made from.

    Attributes:
        owners, names, members: dictionaries of modules, a name in each, and the parameter, module or method there.
        parameters: the parameters among the members.
        versions: how often each had been written to. What is written through `.data` is not counted by torch.
        hooks: dictionaries that were empty.
    """

    owners: tuple[dict[str, Any], ...]
    names: tuple[str, ...]
    members: tuple[object, ...]
    parameters: tuple[Tensor, ...]
    versions: tuple[int, ...]
    hooks: tuple[dict[int, Any], ...]

    def is_unchanged(self) -> bool:
        """Whether no parameter was written to or replaced, no module or method replaced, and no hook added."""
        # Without a loop in Python, which would take as long as the kernels of a small model.
        return (
            tuple(map(_version_of, self.parameters)) == self.versions
            and not any(self.hooks)
            and all(map(is_, map(dict.get, self.owners, self.names), self.members))
        )


def watch(holders: Iterable[nn.Module], modules: Iterable[nn.Module], further: Iterable[nn.Module]) -> Watch:
    """What is there now: of `holders` their modules, of `modules` all members and hooks, of `further` parameters."""
    found: list[tuple[dict[str, Any], str]] = [(each._modules, name) for each in holders for name in each._modules]
    hooks: list[dict[int, Any]] = []
    for module in modules:
        found += [(vars(module), name) for name in OVERRIDES if hasattr(module, name)]
        found += [(members, name) for members in (module._modules, module._parameters) for name in members]
        hooks += [getattr(module, name) for name in HOOKS]
    for module in further:
        found += [(module._parameters, name) for name in module._parameters]
    members = tuple(owner.get(name) for owner, name in found)
    parameters = tuple(member for member in members if isinstance(member, Tensor))
    owners, names = tuple(owner for owner, _ in found), tuple(name for _, name in found)
    return Watch(owners, names, members, parameters, tuple(map(_version_of, parameters)), tuple(hooks))
