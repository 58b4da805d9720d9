"""One class per failure, with the message on the class.

Raise with the details as keywords; they fill the message and stay readable as attributes:

    raise UnknownMapError(role="phi", name="relu", known="identity, silu")
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import ClassVar

_REPORTS = ("reason", "reasons")
"""Details that may take several lines, as what a compiler says does."""


def printable(text: str, kept: str = "") -> str:
    """`text` with every character escaped that `repr` escapes, line ends among them, but for those `kept`.

    Example:
        >>> printable("reversed: \\u202e")
        'reversed: \\u202e'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in kept else ascii(each)[1:-1] for each in text)


class TrellisError(Exception):
    """Base of every error that this project raises on purpose; no detail acts on the terminal that shows it."""

    message: ClassVar[str] = "{detail}"

    def __init__(self, **details: object) -> None:
        super().__init__(_filled(self.message, details))
        self.details = details

    def __getattr__(self, name: str) -> object:
        details = self.__dict__.get("details", {})
        if name in details:
            return details[name]
        raise AttributeError(f"{type(self).__name__} has no detail {name!r}")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.details))


def _filled(message: str, details: Mapping[str, object]) -> str:
    """`message` with its fields filled in, as `str.format` does it, and made printable."""
    filled = []
    for text, name, form, conversion in Formatter().parse(message):
        filled.append(text)
        if name is not None:
            value = repr(details[name]) if conversion == "r" else details[name]
            filled.append(printable(format(value, form or ""), kept="\n\t" if name in _REPORTS else ""))
    return "".join(filled)


def _rebuild(kind: type[TrellisError], details: dict[str, object]) -> TrellisError:
    return kind(**details)


class UnknownMapError(TrellisError, ValueError):
    """A map name that no rule knows."""

    message = "{role}={name!r} is no known map; choose one of: {known}"


class RuleError(TrellisError, ValueError):
    """A field of a rule that is none of its choices, or that another field excludes."""

    message = "rule field {field}={value!r}: {reason}"


class UnknownRuleError(TrellisError, ValueError):
    """A name of a rule that is none of those in `codegen.rules.NAMED`."""

    message = "rule={name!r} is no known rule; give a Rule, or choose one of: {known}"


class RuleTensorError(TrellisError, TypeError):
    """A tensor that a rule takes and a call lacks, or one that it does not take."""

    message = "{name} {problem}: the rule takes {taken}"


class SpecKeyError(TrellisError, ValueError):
    """A text that is the key of no spec, such as one that another version wrote."""

    message = "{key!r} is no key of a spec that this version knows: {reason}"


class WorkloadError(TrellisError, ValueError):
    """A workload file, or a spec typed on the command line, that does not describe specs."""

    message = "{source}: {problem}"


class MissingPackageError(TrellisError, ImportError):
    """A package that only an extra installs."""

    message = "the package {package!r} is missing; install the extra: pip install 'trellis-ops[{extra}]'"


class UnknownKernelError(TrellisError, ValueError):
    """A kernel name that has no template."""

    message = "{name!r} is no known kernel; choose one of: {known}"


class KernelOfBackendError(TrellisError, ValueError):
    """A kernel that one backend lacks and another has."""

    message = "{backend} has no kernel {name!r}, {other} has; give --backend {other}, or choose one of: {known}"


class UnknownBackendError(TrellisError, ValueError):
    """A backend name outside the registry."""

    message = "{name!r} is no known backend; choose one of: {known}"


class UnknownDeviceError(TrellisError, ValueError):
    """A device name that is neither here nor in the table of named devices."""

    message = "{name!r} is no known device; choose one of: {known}, or 'here'"


class ShapeError(TrellisError, ValueError):
    """A tensor, or a size, whose shape does not fit the others."""

    message = "{name} has shape {shape}; expected {expected}"


class SizeError(TrellisError, ValueError):
    """A size outside the supported range."""

    message = "{name}={value} is out of range; expected {expected}"


class NumberTypeError(SizeError, TypeError):
    """Something else than a number of the right kind where a size or another number belongs."""

    message = "{name}={value!r} is of type {kind}; expected {expected}"


class MemoryRoomError(TrellisError, MemoryError):
    """A call whose results and buffers do not fit into the memory that is there."""

    message = (
        "the call needs {asked} bytes of memory ({parts}), but {device} has {there} bytes {kind}; give it fewer "
        "tokens, sequences or heads at a time"
    )


class DtypeError(TrellisError, TypeError):
    """A tensor type that no implementation takes."""

    message = "{name} has dtype {dtype}; expected {expected}"


class DeviceMismatchError(TrellisError, ValueError):
    """Tensors of one call that live on different devices."""

    message = "{name} is on {device} but q (or w) is on {expected}; move all tensors of a call to one device"


class KernelDeviceError(TrellisError, ValueError):
    """A tensor on another device than the kernel."""

    message = "{name} is on {device}, but the kernel was loaded on {expected}; move the tensor there"


class KernelArgumentError(TrellisError, TypeError):
    """A kernel that is called with something else than it takes."""

    message = "{kernel} was called with {problem}; expected {expected}"


class LayoutError(TrellisError, ValueError):
    """A tensor that does not lie in memory as a kernel reads it."""

    message = "{name} has strides {strides}; pass a contiguous copy, as .contiguous() makes one"


class OverlapError(TrellisError, ValueError):
    """A tensor in memory that a call also writes through another one."""

    message = "{name} shares memory with {other}, which the step writes; {advice}"


class SequenceError(TrellisError, ValueError):
    """Sequence offsets that do not describe the tokens given."""

    message = "cu_seqlens {problem}: {value}; expected N + 1 non-decreasing offsets from 0 to T with B = 1"


class PoolError(TrellisError, ValueError):
    """A row's slot or position that no pool has."""

    message = "{name} {problem}: {value}; expected {expected}"


class ValueCheckError(TrellisError, ValueError):
    """A value that TRELLIS_OPS_CHECK_VALUES=1 looks for and refuses."""

    message = "{name} {problem} (first at index {index}, value {value})"


class IrregularFileError(TrellisError, OSError):
    """A pipe, a device, a folder or a socket where a file is expected."""

    message = "{path} is {kind}, not a regular file; move it away, or name another path"


class FileWriteError(TrellisError, OSError):
    """A file that could not be written."""

    message = "cannot write {path}: {reason}; what stood there is kept. Free space, or name a path that can be written"


class GradientError(TrellisError, RuntimeError):
    """A gradient was asked of an operator that has none."""

    message = "{name} has no gradient: {advice}"


class TransformError(TrellisError, RuntimeError):
    """A function transform, or forward-mode differentiation, of a call that has no rule for it."""

    message = "{name} does not run under {transform}: {advice}"


class ImplementationError(TrellisError, RuntimeError):
    """A forced implementation that cannot run this call."""

    message = "implementation={name!r} cannot run this call: {reason}"


class IllegalScheduleError(TrellisError, ValueError):
    """A schedule that does not fit its spec or device."""

    message = "schedule {schedule} is illegal for {spec}: {reason}"


class ScheduleFieldError(TrellisError, ValueError):
    """A stored or typed schedule with an unknown, missing or mistyped field."""

    message = "schedule field {field}={value!r} is not valid for backend {backend}: {reason}"


class TemplateError(TrellisError, RuntimeError):
    """A template that did not render."""

    message = "template {path} did not render: {reason}"


class CompileError(TrellisError, RuntimeError):
    """A generated source that its compiler refused."""

    message = "{backend} could not compile {path}: {reason}"


class BackendUnavailableError(TrellisError, RuntimeError):
    """A backend whose package, or whose device, is missing."""

    message = "backend {backend!r} is not available: {reason}"


class DeviceFieldError(TrellisError, ValueError):
    """A device whose name could be no part of a file's, or of a line in a generated source."""

    message = "{field}={value!r} of a device is not valid; expected {expected}"


class UnknownStageError(TrellisError, ValueError):
    """A stage of compilation that a backend does not have for a device."""

    message = "{backend} has no stage {name!r} for {device}; choose one of: {known}"


class ExportError(TrellisError, ValueError):
    """A folder that holds no exported operator that this version can run."""

    message = (
        "{path} holds no exported operator of this version: {reason}; make it again with python -m tuner gpu-export"
    )


class CudaDriverError(TrellisError, RuntimeError):
    """A call that the CUDA driver refused."""

    message = "the CUDA driver refused {call} for {subject}: {name} ({code}), {text}"


class MapTextError(TrellisError, ValueError):
    """A text that is no map and no loss."""

    message = "{text!r} is no map or loss: {reason}"
