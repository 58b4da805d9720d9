"""What can be wrong with a training run, one class each."""

from __future__ import annotations

from codegen.errors import TrellisError


class TextError(TrellisError, ValueError):
    """Files in which there is nothing, or too little, to learn from."""

    message = "{source}: {problem}"


class CheckpointError(TrellisError, RuntimeError):
    """A checkpoint that cannot be read, or that another run wrote."""

    message = "{path}: {problem}"


class MissingPackageError(TrellisError, ImportError):
    """A package that only training needs."""

    message = "the package {package!r} is missing; install the extra: pip install 'trellis-ops[train]'"


class LaunchError(TrellisError, RuntimeError):
    """An option that needs processes, of which torchrun started none."""

    message = "{option} shares a model between processes; start it as: torchrun --nproc-per-node 2 -m trellis_ops.train"


class DivergedError(TrellisError, ArithmeticError):
    """A loss that is no longer a number."""

    message = "the loss is {value} at step {step}; lower the learning rate ({learning_rate:g}) or raise phi_eps"
