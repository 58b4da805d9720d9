"""What the documents name exists: files, targets, commands and options, variables, Python names. Their examples run."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen.tables.arguments import arguments_table, tensors_table
from codegen.tables.rules import field_table, named_table
from tests.support.imported import Imported, imported

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "templates/README.md", "tuning_db/winners/README.md")
DOCUMENTS += tuple(sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
TEXTS = {name: (ROOT / name).read_text() for name in DOCUMENTS}
EVERYTHING = "\n".join(TEXTS.values())

SUFFIXES = ("py", "j2", "md", "yaml", "toml", "txt", "json")
FOLDERS = ("codegen", "examples", "templates", "tests", "trellis_ops", "tuner", "tuning_db")
PLACEHOLDER = re.compile(r"<\w+>")
MAINS = {"codegen": "codegen.__main__", "tuner": "tuner.cli", "trellis_ops.lm.demo": "trellis_ops.lm.demo"}
MAINS |= {"trellis_ops.lm.train": "trellis_ops.lm.train.cli", "trellis_ops.generate": "trellis_ops.generate.cli"}
MAINS |= {"trellis_ops.lm.shipped.export": "trellis_ops.lm.shipped.export"}
MAINS |= {f"trellis_ops.lm.train.{name}": f"trellis_ops.lm.train.{name}" for name in ("compare", "summary")}
MAINS |= {"trellis_ops.lm.recall": "trellis_ops.lm.recall.cli"}
MAINS |= {
    f"tests.benchmarks.studies.{name}": f"tests.benchmarks.studies.{name}"
    for name in (
        *(f"kernels.{name}" for name in ("bfloat16_dots", "breakdown", "compile_stages", "few_heads", "guesses")),
        *("kernels.glue", "kernels.instructions_of_a_token", "kernels.sizes"),
        *(f"errors.{name}" for name in ("dot_errors", "gradient_errors", "peers", "rule_forms")),
        *(f"growth.{name}" for name in ("scaling", "training_memory")),
        *(f"serving.{name}" for name in ("prefix_loads", "sequence_bytes", "side_channel")),
        *("rules", "rules_table", "versions.checkouts", "versions.first_calls"),
    )
}
MAINS |= {"trellis_ops.hf": "trellis_ops.hf.__main__"}
"""The command lines of this project, by the name that `python -m` takes, and the module that holds `main`."""


def in_backticks(text: str) -> set[str]:
    """What stands between single backticks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)))


def paths_in(text: str) -> set[str]:
    """The paths of this project that `text` names, in backticks or as the target of a link."""
    linked = {target for target in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in target}
    named = {
        word
        for phrase in in_backticks(text)
        for word in phrase.split()
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w.<>/-]*|[\w-]+\.({'|'.join(SUFFIXES)})", word)
    }
    return linked | named


def commands_in(text: str) -> list[list[str]]:
    """Every line of `text` that calls Python with a module, as words."""
    return [shlex.split(line) for line in sorted(set(re.findall(r"python -m [^`\n#\"]+", text)))]


def exists(path: str, folder: Path) -> bool:
    """Whether `path`, in which <names> stand for anything, is there, seen from the root or from `folder`."""
    pattern = PLACEHOLDER.sub("*", path).rstrip("/")
    return any(True for start in (ROOT, folder) for _ in start.glob(pattern))


MADE_BY_COMMANDS = {"tuning_db/winners/<device>.json", "<device>.json", "manifest.json", "tables.md"}
MADE_BY_COMMANDS |= {"kjv.txt", "train_mine.py", "config.json", "generation_config.json"}
"""Files that no clone has before somebody tunes, exports, runs on a GPU, or does what a page says."""

NAMED_PATHS = [(name, path) for name, text in TEXTS.items() for path in sorted(paths_in(text))]


@pytest.mark.parametrize(("document", "path"), NAMED_PATHS)
def test_every_path_exists(document: str, path: str) -> None:
    assert path in MADE_BY_COMMANDS or exists(path, (ROOT / document).parent)


def test_every_target_exists_and_every_target_is_documented() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", EVERYTHING, re.MULTILINE))
    assert named <= targets
    assert {"help", "tune", "test", "bench", "show", "lint", "clean", "clean-cache"} <= targets
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets == set(re.findall(r"^make ([\w-]+) +\S", helped, re.MULTILINE))


def test_make_gpu_without_torch_says_what_is_missing_and_shows_no_traceback() -> None:
    python = f"{sys.executable} -S"
    # `make test` passes its flags on to a make that tests start.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    command = ["make", "gpu", f"PYTHON={python}"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode
    assert run.stdout.splitlines() == [
        "ModuleNotFoundError: No module named 'torch'",
        f"make gpu needs torch and triton in {python}; name another Python, as in: "
        "make gpu PYTHON=/opt/torch/bin/python",
    ]
    assert "Traceback" not in run.stderr


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no clone")
def test_what_the_commands_leave_is_ignored_and_nothing_that_is_tracked() -> None:
    def git(*arguments: str) -> list[str]:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()

    left = ["bible-kjv_4.38_amd64.deb", "kjv/usr", "kjv.txt", "winners/a.json", "studies.db", "studies.db.lock"]
    left += ["train_mine.py", "mine/config.json", "mine-run/a", "states/key", "runs/mine/checkpoint.safetensors"]
    assert git("check-ignore", *left) == left
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == []
    assert git("check-ignore", "tuning_db/winners/another.json") == []


def test_every_variable_of_make_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"\bmake [a-z]+ ([A-Z]+)=", EVERYTHING))
    assert named
    assert [name for name in named if f"$({name})" not in makefile] == []


@pytest.mark.parametrize("words", commands_in(EVERYTHING), ids=" ".join)
def test_every_command_and_its_options_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    module, arguments = words[2], words[3:]
    # Looking for pip would switch off, for the rest of this process, what setuptools does for torch.compile.
    assert module != "pip", "write .venv/bin/pip"
    assert importlib.util.find_spec(module) is not None
    if module.startswith("tests.vllm."):
        # It is imported in an environment of its own.
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        assert [word for word in arguments if word.startswith("--") and f'"{word}"' not in source] == []
        return
    if module not in MAINS:
        assert module in ("pytest", "tuner.gpu_run.exported")  # The latter takes folders, and no option.
        return
    subcommand = [word for word in arguments[:1] if not word.startswith("-")] if module != "trellis_ops.lm.demo" else []
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(MAINS[module]).main([*subcommand, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    options = {word for word in arguments if word.startswith("--")}
    assert {option for option in options if not re.search(rf"{option}\b", printed)} == set()


def test_every_environment_variable_is_read_and_documented() -> None:
    sources = [path.read_text() for folder in FOLDERS if folder != "tests" for path in (ROOT / folder).rglob("*.py")]
    tests = [path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    read = set(re.findall(r'"(TRELLIS_OPS_[A-Z_]+|TVM_[A-Z_]+)"', "\n".join(sources)))
    assert {"TRELLIS_OPS_CACHE", "TRELLIS_OPS_IMPLEMENTATION"} <= read
    assert [name for name in sorted(read) if f"| `{name}` |" not in TEXTS["docs/configuration.md"]] == []
    listed = re.findall(r"^\| `([A-Z_]+)` \|", TEXTS["docs/configuration.md"], re.MULTILINE)
    named = {*listed, *re.findall(r"\b(?:TRELLIS_OPS|TRITON|TVM|GOMP)_[A-Z_]+\b", EVERYTHING)}
    assert [name for name in sorted(named) if f'"{name}"' not in "\n".join([*sources, *tests])] == []


def test_the_tables_of_arguments_are_those_that_are_declared() -> None:
    text = TEXTS["templates/README.md"]
    assert arguments_table() in text, "print them by python -m codegen arguments"
    assert tensors_table() in text


def test_the_tables_of_rules_are_those_of_the_records() -> None:
    text = (ROOT / "docs/rules.md").read_text()
    assert field_table() in text, "print them by python -m codegen rules"
    assert named_table() in text


def test_every_dotted_name_exists() -> None:
    dotted = {phrase for phrase in in_backticks(EVERYTHING) if re.fullmatch(rf"({'|'.join(FOLDERS)})(\.\w+)+", phrase)}
    assert "codegen.rule.Rule" in dotted
    for name in sorted(dotted - {"tests"}):
        parts = name.split(".")
        found = importlib.import_module(parts[0])
        for depth, part in enumerate(parts[1:], start=2):
            if not hasattr(found, part):
                importlib.import_module(".".join(parts[:depth]))
            found = getattr(found, part)


def test_readme_is_short_and_begins_with_an_example() -> None:
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 150
    assert "```python" in lines[:30]


PRINTED = {
    "docs/decoding.md": "block_step: tvm:variant=block",
    "README.md": "torch.Size([1, 4096, 8, 64])",
    "docs/using.md": "torch.Size([1, 4096, 8, 64])",
    "docs/prefix-store.md": "True 448\nTrue\n192\n[(192, 2)]\n",
    "docs/hugging-face.md": "merged == unmerged: True",
    "docs/rules.md": "torch.Size([1, 50, 2, 16]) tensor(True) tensor(True)\ntensor(True)\n",
}
"""What the examples of a document print, as far as it is told."""


FILE = re.compile(r"# (\w+\.py)\n")
"""The first line of an example that is to be saved as a file, which commands of the page then run."""


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def python() -> Iterator[Imported]:
    with imported() as process:
        yield process


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_example_runs(document: str, python: Imported, tmp_path: Path) -> None:
    blocks = [each for each in python_blocks(TEXTS[document]) if not FILE.match(each)]
    assert blocks or document != "README.md"
    if not blocks:
        return
    environment = {**os.environ, "TRELLIS_OPS_TUNING_DB": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = python.run(["-c", "\n".join(blocks)], ROOT, environment)
    assert done.returncode == 0, done.stderr
    assert PRINTED[document] in done.stdout


WRITTEN = 5
"""Texts that the commands of docs/using.md write."""

SMALLER = {
    "tuner tune ": "tuner tune --budget 1s --cores 1 ",
    "tokens=4096, heads=8": "tokens=256, heads=1",
    "train_mine.py mine 20 ": "train_mine.py mine 2 ",
    "--steps 20 --batch 4": "--steps 2 --batch 4",
    "--steps 150 ": "--steps 2 --batch 2 --length 64 --new-bytes 20 ",
}
"""What stands here in the place of a part of a command, so that it takes seconds in the place of minutes."""


def test_the_commands_of_using_run_in_order(python: Imported, tmp_path: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```$", TEXTS["docs/using.md"], re.DOTALL | re.MULTILINE)
    # What pip installs is for tests/test_packaging.py.
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith("pip install ")]
    assert sum("trellis_ops.generate" in line for line in lines) == WRITTEN
    for part, smaller in SMALLER.items():
        (place,) = (index for index, line in enumerate(lines) if part in line)
        lines[place] = lines[place].replace(part, smaller)
    for block in python_blocks(TEXTS["docs/using.md"]):
        if named := FILE.match(block):
            (tmp_path / named[1]).write_text(block)
    for name in ("README.md", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    own = {
        "TRELLIS_OPS_TUNING_DB": str(tmp_path / "records"),
        "TRELLIS_OPS_STORAGE": f"sqlite:///{tmp_path}/studies.db",
    }
    environment = {**os.environ, **own, "PYTHONPATH": str(ROOT)}
    done = [run_line(python, line, tmp_path, environment) for line in lines]
    printed, told = ("".join(getattr(each, name) for each in done) for name in ("stdout", "stderr"))
    assert "In the beginning" in printed and "The state" in printed
    assert told.count("tokens per second, one at a time") == WRITTEN
    known = [int(each.replace(",", "")) for each in re.findall(r"store: ([\d,]+) of", told)]
    assert known[0] == 0 < known[1], told
    assert "Tuned here" in printed and [*(tmp_path / "records").glob("*.json")]
    assert "held out, after 2 steps" in printed


def run_line(
    python: Imported, line: str, folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """What a shell does with `python ARGUMENTS < FILE  # a comment`, where it succeeds."""
    program, *words = shlex.split(line, comments=True)
    assert program in ("python", ".venv/bin/python")
    stdin = None
    if "<" in words:
        *words, _, name = words
        stdin = folder / name
    done = python.run(words, folder, environment, stdin)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done


@pytest.mark.parametrize(
    ("text", "path"),
    [("see `codegen/nothing.py`", "codegen/nothing.py"), ("[it](missing.md)", "missing.md")],
)
def test_a_path_that_is_not_there_is_found(text: str, path: str) -> None:
    assert paths_in(text) == {path}
    assert not exists(path, ROOT)
