"""`structured compare`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.structured.commands.cli import IMPLICIT, TINY, ok, refused


def test_compare_prints_a_table_and_verdicts_and_writes_pictures(
    file: Path, tmp_path: Path
) -> None:
    command = ("compare", "-d", file, "-m", "cross_entropy", "-m", IMPLICIT, "--seeds", 2, "-e", 2)
    text = ok(*command, *TINY).stdout
    for part in ("cross-entropy", "implicit-margin", "expected F1", "20 test rows", "±"):
        assert part in text
    assert "expected F1: implicit-margin against cross-entropy" in text
    folder = tmp_path / "runs/compare-coast"
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {
        "comparison.png",
        "cross-entropy-curves.png",
        "implicit-margin-curves.png",
        "implicit-margin-label-hessian.png",
    }
    values = json.loads((folder / "comparison.json").read_text())
    assert values["command"].startswith("structured compare --method cross_entropy --method")
    assert len(values["runs"]) == 4
    assert "add --resume" in refused(2, *command, *TINY)
    # What is finished is not trained again, and the runs can be used one by one.
    again = json.loads(ok(*command, *TINY, "--resume", "--no-plots", "--json").stdout)
    assert again["summary"] == values["summary"]
    assert again["pictures"] == []
    assert again["runs"] == values["runs"]
    assert ok("evaluate", folder / "implicit-margin/seed1").exit_code == 0
