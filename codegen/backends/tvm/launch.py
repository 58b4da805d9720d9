"""What TVM's host function does before it launches a CUDA kernel, read out of it as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from codegen.backends.tvm.executable import NAME, compiler, executable
from codegen.backends.tvm_cuda.launch import Argument, Extent, LaunchPlan, Size
from codegen.device import Device
from codegen.errors import CompileError
from codegen.render import Source

_SPLIT = "tirx.SplitHostDevice"
_LAUNCH = "tirx.call_ffi_kernel"
_SHARED = "tirx.use_dyn_shared_memory"
_AXES = "xyz"


@dataclass(frozen=True)
class Lowered:
    """One kernel as another machine can launch it.

    Attributes:
        cuda: its CUDA source.
        plan: how calls of it become launches.
    """

    cuda: str
    plan: LaunchPlan


def lowered(source: Source, device: Device) -> Lowered:
    """The CUDA source of a rendered kernel, and the launch that TVM's host function makes.

    Raises:
        CompileError: TVM refused the source, or its host function does more than a plan can say.
    """
    tvm = compiler()
    kept: list[Any] = []

    class Recorder:
        """Keeps the functions as they are once TVM has parted the host's from the card's."""

        def run_after_pass(self, module: Any, info: Any) -> None:
            """What TVM calls after each of its passes."""
            if info.name == _SPLIT:
                kept.append(module)

    made = executable(source, device, [tvm.instrument.pass_instrument(Recorder)()])
    (module,) = kept
    return Lowered(str(made.mod.imports[0].inspect_source()), _Reader(source).plan(module[source.kernel]))


@dataclass(frozen=True)
class _Reader:
    """Reads one host function.

    Attributes:
        source: that it was made from, for the message of an error.
    """

    source: Source

    def plan(self, host: Any) -> LaunchPlan:
        """What it launches: its last statement, after declarations of views of its arguments."""
        *declared, last = getattr(host.body, "seq", [host.body])
        call = getattr(last, "value", None)
        if getattr(getattr(call, "op", None), "name", None) != _LAUNCH:
            raise self._refusal(f"ends with {last} and not with {_LAUNCH}")
        assert call is not None
        tags = [str(tag) for tag in call.attrs.launch_params]
        function, *given = call.args
        values, extents = given[: len(given) - len(tags)], dict(zip(tags, given[len(given) - len(tags) :], strict=True))
        shared = extents.pop(_SHARED, 0)
        plan = LaunchPlan(
            function=str(function.value),
            arguments=tuple(self._argument(each) for each in host.params),
            passed=tuple(self._passed(each, declared) for each in values),
            grid=self._extent(extents, "blockIdx"),
            block=self._extent(extents, "threadIdx"),
            shared_bytes=int(shared),
        )
        if extents:
            raise self._refusal(f"launches with {', '.join(extents)}, which no plan has a place for")
        return self._whole(plan)

    def _argument(self, parameter: Any) -> Argument:
        shape = getattr(parameter.ty, "shape", None)
        if shape is None:
            return Argument(str(parameter.name), str(parameter.ty.dtype))
        sizes = tuple(self._size(each, f"{parameter.name} has a side of") for each in shape)
        return Argument(str(parameter.name), str(parameter.ty.dtype), sizes)

    def _passed(self, value: Any, declared: Sequence[Any]) -> str:
        if not hasattr(value, "op"):
            return str(self._size(value, "passes"))
        # The address of a view; the view's own address is that of another one, or of an argument.
        owner = value.args[0]
        for view in reversed(declared):
            if hasattr(view, "buffer") and view.buffer.same_as(owner):
                owner = view.data.args[0]
        return str(owner.name)

    def _extent(self, extents: dict[str, Any], index: str) -> Extent:
        x, y, z = (self._size(extents.pop(f"{index}.{axis}", 1), f"{index}.{axis} is") for axis in _AXES)
        return x, y, z

    def _size(self, value: Any, what: str) -> Size:
        if isinstance(value, int):
            return value
        if hasattr(value, "value"):
            return int(value.value)
        if hasattr(value, "name"):
            return str(value.name)
        raise self._refusal(f"{what} {value}, which is neither a number nor the name of one")

    def _whole(self, plan: LaunchPlan) -> LaunchPlan:
        known = {each.name for each in plan.arguments}
        known |= {size for each in plan.arguments for size in each.shape or () if isinstance(size, str)}
        used = {*plan.passed, *(size for size in (*plan.grid, *plan.block) if isinstance(size, str))}
        if used - known:
            raise self._refusal(f"uses {', '.join(sorted(used - known))}, which no argument has")
        return plan

    def _refusal(self, problem: str) -> CompileError:
        reason = f"the host function that TVM makes {problem}, so that its launch cannot be exported"
        return CompileError(backend=NAME, path=self.source.path, reason=reason)
