"""The declared arguments as the tables of templates/README.md."""

from __future__ import annotations

from collections.abc import Mapping

from codegen.kernels.arguments import AXES
from codegen.kernels.signatures import KERNELS, TENSORS, Group


def arguments_table(declared: Mapping[str, tuple[Group, ...]] = KERNELS) -> str:
    """A row for each kernel: its arguments in order, with how each is used and when it is there."""
    rows = [f"| `{kernel}` | {'; '.join(_group(group) for group in groups)} |" for kernel, groups in declared.items()]
    return "\n".join(("| kernel | arguments after the number of programs |", "|---|---|", *rows))


def tensors_table() -> str:
    """A row for each shape and type: which names have it."""
    named: dict[tuple[str, str], list[str]] = {}
    for name, declared in TENSORS.items():
        named.setdefault(declared, []).append(name)
    rows = [
        f"| {', '.join(f'`{name}`' for name in names)} | {_shape(axes)} | {kind} |"
        for (axes, kind), names in named.items()
    ]
    return "\n".join(("| names | shape | type |", "|---|---|---|", *rows))


def _group(group: Group) -> str:
    condition = f" ({group.when.words})" if group.when else ""
    return f"{group.access}: {', '.join(f'`{name}`' for name in group.names)}{condition}"


def _shape(axes: str) -> str:
    return f"`[{', '.join(AXES[axis] for axis in axes.split())}]`" if axes else "a number"
