"""What can be wrong with a training run, one class each."""

from __future__ import annotations

from codegen.errors import TrellisError


class TextError(TrellisError, ValueError):
    """Files in which there is nothing, or too little, to learn from."""

    message = "{source}: {problem}"


class CheckpointError(TrellisError, RuntimeError):
    """A checkpoint that cannot be read, or that another run wrote."""

    message = "{path}: {problem}"


class FolderInUseError(TrellisError, RuntimeError):
    """A folder in which another process works."""

    message = "{folder} is in use by the {work} of {holder}; wait for it, end it, or name another folder"


class ComputingDeviceError(TrellisError, ValueError):
    """A device that there is not, or that training does not know."""

    message = "device {name!r}: {problem}; give cpu, cuda, cuda:<number>, or auto for a GPU where there is one"


class WorkerLostError(TrellisError, RuntimeError):
    """A process of a pool that ended in the middle of its work."""

    message = (
        "a worker ended without a word, most often because memory ran out; what is done is kept. Run the same command "
        "again, with fewer --workers or smaller sizes"
    )


class OutOfMemoryError(TrellisError, MemoryError):
    """Tensors that did not fit into memory."""

    message = "there is not enough memory ({reason}); make the model, --batch or --length smaller"


class LaunchError(TrellisError, RuntimeError):
    """An option that needs processes, of which torchrun started none."""

    message = (
        "{option} shares a model between processes; start it as: torchrun --nproc-per-node 2 -m trellis_ops.lm.train"
    )


class DivergedError(TrellisError, ArithmeticError):
    """A loss that is no longer a number."""

    message = "the loss is {value} at step {step}; lower the learning rate ({learning_rate:g}) or raise phi_eps"
