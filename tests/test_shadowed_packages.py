"""Other packages named codegen, tuner or tuning_db: refused where ours is meant, and no matter to our own processes."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.support import installed
from tests.support.installed import ROOT, run
from trellis_ops.own_packages import NAMES

IMPORT = "import trellis_ops"
FIRST_OURS = {"PYTHONPATH": str(ROOT)}
_WHY_NOT = installed.why_not_buildable()


def refusal(code: str, folder: Path, path: str = str(ROOT), *flags: str) -> str:
    """What the ImportError that `code` ends with says; nothing as heavy as torch was imported before it."""
    told = f"import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))\n{code}"
    done = run([sys.executable, *flags, "-c", told], folder, {"PYTHONPATH": path})
    assert done.stdout == "False\n", done.stderr
    assert done.stderr.count("Error: ") == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["codegen", "tuning_db"])
@pytest.mark.parametrize("file", ["{}.py", "{}/__init__.py"])
def test_a_module_beside_a_users_program(name: str, file: str, tmp_path: Path):
    path = tmp_path / file.format(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise AssertionError('it was run')")
    assert refusal(IMPORT, tmp_path) == (
        f"ImportError: {path} shadows the package {name!r} of trellis-ops, which is in {ROOT / name}: Python finds it "
        f"first. Rename or uninstall it, start Python in another folder, or put {ROOT} before its folder on sys.path"
    )


def test_two_of_them_are_one_error(tmp_path: Path):
    for name in ("codegen", "tuning_db"):
        (tmp_path / f"{name}.py").touch()
    done = run([sys.executable, "-c", IMPORT], tmp_path, FIRST_OURS)
    assert done.stderr.count("ImportError: ") == 1
    assert done.stderr.count(" shadows the package ") == 2


def test_a_module_that_a_program_has_imported_or_made_before(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "codegen.py"
    path.touch()
    before = f"import sys; sys.path.insert(0, {str(path.parent)!r}); import codegen; sys.path.pop(0); {IMPORT}"
    assert f"{path} shadows the package 'codegen'" in refusal(before, tmp_path)
    made = f"import sys, types; sys.modules['codegen'] = types.ModuleType('codegen'); {IMPORT}"
    assert "<module 'codegen'>, a module without a file, shadows the package 'codegen'" in refusal(made, tmp_path)


@pytest.mark.parametrize("module", ["tuner", "tuner.gpu_run", "trellis_ops.lm.train", "trellis_ops.lm.recall"])
def test_every_command_says_so(module: str, tmp_path: Path):
    (tmp_path / "codegen.py").write_text("raise AssertionError('it was run')")
    done = run([sys.executable, "-m", module, "--help"], tmp_path, FIRST_OURS)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {tmp_path / 'codegen.py'} shadows the package")


def test_the_same_package_by_another_path_is_ours(tmp_path: Path):
    (tmp_path / "codegen").symlink_to(ROOT / "codegen")
    look = f"import runpy; runpy.run_path({str(ROOT / 'trellis_ops/own_packages.py')!r})['require_own']('codegen')"
    done = run([sys.executable, "-c", look], tmp_path, FIRST_OURS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("content", "problem"), [("from . import ast", "is another distribution's"), (None, "is missing")]
)
def test_another_distribution_in_the_same_folder(content: str | None, problem: str, tmp_path: Path):
    copy = installed.copy_of_the_project(tmp_path / "site")
    path = copy / "codegen" / "__init__.py"
    path.unlink() if content is None else path.write_text(content)
    # Without what is installed here: Python prefers a whole package that comes later.
    said = refusal(IMPORT, tmp_path, str(copy), "-S")
    assert said.startswith(f"ImportError: {path} {problem}: another distribution with a package 'codegen'")
    assert said.endswith("pip install --force-reinstall --no-deps trellis-ops")


@pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))
def test_a_folder_without_init_shadows_what_is_installed_to_be_edited(tmp_path: Path):
    copy = installed.copy_of_the_project(tmp_path / "copy")
    python = installed.environment_with(tmp_path / "environment", "-e", copy) / "python"
    user = tmp_path / "user"
    (user / "codegen").mkdir(parents=True)
    done = run([python, "-c", IMPORT], user)
    said = (
        f"ImportError: {user / 'codegen'} shadows the package 'codegen' of trellis-ops, which is in {copy / 'codegen'}"
    )
    assert done.stderr.splitlines()[-1].startswith(said)


WORKERS = """
import multiprocessing, subprocess, sys
from concurrent.futures import ProcessPoolExecutor

if __name__ == "__main__":
    from trellis_ops.lm.train.processes.workers import pool
    from tuner.processes.own_process import own_process
    from tuner.workers.limits import Limits
    from tuner.workers.process import WorkerProcess

    worker = WorkerProcess(Limits())
    while not worker.idle:
        worker.connection.poll(None)
        said = worker.hear()
        assert said is None, said
    worker.stop()
    ours = "__import__('codegen').__file__"
    with pool(1) as executor:
        print(executor.submit(eval, ours).result() == eval(ours))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        from codegen.spec import Problem
        print(executor.submit(Problem.__hash__, Problem()).result() is not None)
    # From here on this process, too, would import what the folder has.
    sys.path.insert(0, "")
    command = own_process("codegen", "show", "memory_step", "--backend", "tvm", "--device", "x86-64-v3")
    print(subprocess.run(command, stdout=subprocess.DEVNULL).returncode)
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A user's folder with modules of all our names, which are not to be run."""
    folder = tmp_path / "user"
    for name in ("codegen", "tuner", "tuning_db", "templates"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise AssertionError('the {name} of the user was run')")
    return folder


def test_processes_that_are_started_there_import_what_their_parent_does(hostile: Path, tmp_path: Path):
    (tmp_path / "program").mkdir()
    program = tmp_path / "program" / "main.py"
    program.write_text(WORKERS)
    done = run([sys.executable, "-W", "ignore", program], hostile, FIRST_OURS)
    assert done.stdout.split() == ["True", "True", "0"], done.stderr


def test_modules_of_ours_are_started_in_one_place():
    """`python -m` looks into the folder in which it is started; only `own_process` does not."""
    sources = [path for name in NAMES for path in (ROOT / name).rglob("*.py")]
    starting = [
        path.relative_to(ROOT).as_posix()
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.executable"
    ]
    assert starting == ["tuner/processes/own_process.py"]
