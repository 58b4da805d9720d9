"""`python -m codegen clean-cache`."""

from __future__ import annotations

from pathlib import Path

import pytest

from codegen.__main__ import main


def test_what_can_be_generated_again_goes_and_the_rest_stays(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(tmp_path))
    files = ("generated/tvm/a.py", "generated/triton/b.py", "kernels/c.so", "kernels/locks/00.lock", "studies.db")
    for name in files:
        path: Path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1_000_000))
    assert main(["clean-cache"]) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'generated'}: 2 files removed, 2.0 MB\n{tmp_path / 'kernels'}: 2 files removed, 2.0 MB\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["studies.db"]


@pytest.mark.parametrize("times", [1, 2])
def test_nothing_to_remove_is_no_error(tmp_path, monkeypatch, capsys, times):
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(tmp_path / "none"))
    for _ in range(times):
        assert main(["clean-cache"]) == 0
    assert "0 files removed" in capsys.readouterr().out
