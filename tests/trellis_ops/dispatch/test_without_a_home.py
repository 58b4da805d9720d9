"""A user without HOME and without an entry in the password file, as containers have them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

CALL = """
import os, tempfile
os.setresuid(54321, 0, 0)  # Root still reads what it must; who the user is says the first of the three.
import torch
import trellis_ops
from codegen.cache.folder import cache_folder
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import trellis_attention
from trellis_ops.dispatch.resolve import store

assert store().user is None
print(trellis_ops.selection())
assert str(cache_folder()) == os.path.join(tempfile.gettempdir(), "trellis-ops-54321")
inputs = make_inputs(1, 5, 2, 4, 4, 4)
y, _ = trellis_attention(*inputs.args, chunk_size=1)
expected, _ = trellis_attention(*inputs.args, chunk_size=1, implementation="eager")
assert_close(y, expected, 1e-5)
"""

NAMED = """
import os
os.setresuid(54321, 0, 0)
from codegen.cache.folder import cache_folder
from tuning_db.default import default_store
store = default_store()
print(store.user.folder, store.fallback and store.fallback.folder.parent.parent)
"""


def run(code: str, temporary: Path, **environment: str) -> str:
    without = ("HOME", "TRELLIS_OPS_CACHE", "TRELLIS_OPS_TUNING_DB", "XDG_CACHE_HOME", "XDG_DATA_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in without}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=kept | {"TMPDIR": str(temporary)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


pytestmark = pytest.mark.skipif(
    not hasattr(os, "setresuid") or os.geteuid() != 0, reason="only root may become a user without an account"
)


def test_it_is_imported_and_sources_are_kept_in_the_temporary_folder(tmp_path):
    assert "tuned kernels" in run(CALL, tmp_path)
    assert (tmp_path / "trellis-ops-54321").stat().st_mode & 0o777 == 0o700
    # Sources only: what links a kernel here is run by a user who may read nothing.
    assert len(list((tmp_path / "trellis-ops-54321" / "generated").rglob("*.py"))) == 1


def test_what_variables_name_is_used(tmp_path):
    records, cache = str(tmp_path / "records"), str(tmp_path / "cache")
    assert run(NAMED, tmp_path, TRELLIS_OPS_TUNING_DB=records).split() == [records, "None"]
    assert run(NAMED, tmp_path, TRELLIS_OPS_TUNING_DB=records, TRELLIS_OPS_CACHE=cache).split() == [records, cache]
