"""TVM that is installed and cannot be loaded: plain PyTorch serves after one warning, what was forced is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

CALL = """
import sys, warnings
import torch
import trellis_ops
from codegen.errors import ImplementationError
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import explain, trellis_attention, trellis_step
from tuning_db import TuningDatabaseWarning

phrase = sys.argv[1]
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    warnings.simplefilter("ignore", TuningDatabaseWarning)
    for chunk_size in (1, 4):
        for length in (5, 20):
            inputs = make_inputs(1, length, 2, 4, 4, 4)
            inputs.args[0].requires_grad_(length == 20)
            y, _ = trellis_attention(*inputs.args, chunk_size=chunk_size)
            expected, _ = trellis_attention(*inputs.args, chunk_size=chunk_size, implementation="eager")
            assert_close(y.detach(), expected.detach(), 1e-6)
            if length == 20:
                y.sum().backward()
assert len(said) == 1, [str(each.message) for each in said]
assert phrase in str(said[0].message) and "install apache-tvm" in str(said[0].message), said[0].message
for _ in range(2):
    try:
        trellis_attention(*inputs.args, chunk_size=4, implementation="tvm")
    except ImplementationError as error:
        assert phrase in str(error), error
    else:
        raise AssertionError("it was forced, and something else ran")
print(explain(trellis_attention, *inputs.args, chunk_size=4).implementation)
"""


def run(first_on_the_path: Path, phrase: str, cache: Path) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{first_on_the_path}{os.pathsep}{ROOT}",
        "TRELLIS_OPS_CACHE": str(cache),
    }
    environment.pop("TRELLIS_OPS_IMPLEMENTATION", None)
    done = subprocess.run(
        [sys.executable, "-c", CALL, phrase],
        cwd=cache.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_runtime_that_cannot_be_imported(tmp_path):
    (tmp_path / "broken" / "tvm_ffi").mkdir(parents=True)
    (tmp_path / "broken" / "tvm_ffi" / "__init__.py").write_text("raise OSError('libcore.so: cannot open')")
    assert run(tmp_path / "broken", "TVM's runtime cannot be loaded", tmp_path / "cache") == "eager"


def test_a_runtime_whose_library_cannot_be_loaded(tmp_path):
    folder = tmp_path / "broken" / "tvm"
    (folder / "lib").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "lib" / "libtvm_runtime.so").write_bytes(b"no library")
    assert run(tmp_path / "broken", "libtvm_runtime.so", tmp_path / "cache") == "eager"


def test_a_compiler_that_cannot_be_imported_where_the_runtime_can(tmp_path):
    import tvm

    folder = tmp_path / "broken" / "tvm"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AttributeError('another version of tvm_ffi')")
    (folder / "lib").symlink_to(Path(tvm.__file__).parent / "lib")
    # It may have kept kernels, which need no compiler: only a call that has none finds out.
    assert run(tmp_path / "broken", "another version of tvm_ffi", tmp_path / "cache") == "tvm"
