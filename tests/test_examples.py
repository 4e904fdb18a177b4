"""Every example runs as a user runs it, small, and shows what it says it shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))


def _python(script: Path, *options: str, cwd: Path) -> str:
    """What the script prints; warnings are errors there, too."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *options],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def _run(name: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Run an example in its small mode: what it printed, and the figures it left."""
    printed = _python(REPOSITORY / "examples" / f"{name}.py", "--quick", cwd=folder)
    assert (folder / "output" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((folder / "output" / f"{name}.json").read_text(encoding="utf-8"))
    return printed, figures


def test_a_penalty_per_weight_beats_the_best_single_penalty_and_its_gradient_is_right(
    tmp_path: Path,
) -> None:
    printed, figures = _run("penalty_per_weight", tmp_path)
    single, tuned = figures["results"].values()
    assert tuned["validation_loss"] < 0.5 * single["validation_loss"]
    assert tuned["test_loss"] < single["test_loss"]
    assert tuned["test_accuracy"] > single["test_accuracy"]
    assert figures["relative_error"] < 1e-6
    assert "relative error of the hypergradient" in printed


def test_learnt_weights_find_the_wrong_labels_and_close_most_of_the_gap_to_the_oracle(
    tmp_path: Path,
) -> None:
    printed, figures = _run("data_cleaning", tmp_path)
    results = figures["results"]
    accuracy = {name: row["test_accuracy"] for name, row in results.items()}
    gap = accuracy["oracle: right labels only"] - accuracy["no cleaning"]
    assert figures["auc"] > 0.85
    assert gap > 0.1
    assert accuracy["learnt weights"] > accuracy["no cleaning"] + 0.5 * gap
    assert "area under the ROC curve" in printed


def test_meta_learning_beats_both_starts_and_its_gradient_equals_the_closed_form(
    tmp_path: Path,
) -> None:
    printed, figures = _run("proximal_meta_learning", tmp_path)
    errors = figures["squared_error"]
    assert errors["meta-learnt"] < 0.25 * errors["all tasks pooled"]
    assert errors["meta-learnt"] < 0.25 * errors["no meta-learning"]
    assert max(figures["relative_error"]) < 1e-10
    assert "(I + H / lam)^-1 grad outer" in printed


def test_a_fixed_point_layer_trains_in_less_memory_than_unrolling_with_the_same_gradient(
    tmp_path: Path,
) -> None:
    printed, figures = _run("fixed_point_layer", tmp_path)
    for name in ("GMRES", "Neumann"):
        assert figures[name]["kept_mebibytes"] < 0.5 * figures["unrolled"]["kept_mebibytes"]
        assert figures[name]["gradient_error"] < 1e-3
        assert figures[name]["test_accuracy"] > figures["unrolled"]["test_accuracy"] - 0.05
    assert figures["one step"]["gradient_error"] > 0.1
    assert "gradcheck with GMRES: True" in printed
    assert "gradcheck with Neumann: True" in printed


def test_imitation_by_a_fenchel_young_loss_finds_the_controller_and_regression_does_not(
    tmp_path: Path,
) -> None:
    printed, figures = _run("imitation", tmp_path)
    results = figures["results"]
    learned = results["Fenchel-Young loss"]
    assert learned["largest_error"] < 1e-5
    assert abs(learned["excess_cost"]) < 1e-6
    for name in ("squared loss, linear", "squared loss, network"):
        assert results[name]["largest_error"] > 0.1
        assert results[name]["excess_cost"] > 0.01
    assert abs(figures["loss"]) < 1e-10
    assert figures["quadratic_error"] < 1e-5
    assert figures["gradient_error"] < 1e-4
    assert "the learned quadratic is the controller's, up to scale" in printed


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_every_example_explains_its_options_and_stands_in_the_documentation(
    script: Path, tmp_path: Path
) -> None:
    printed = _python(script, "--help", cwd=tmp_path)
    assert "--quick" in printed
    assert "--output" in printed
    page = (REPOSITORY / "docs" / "examples.md").read_text(encoding="utf-8")
    assert f"examples/{script.name}" in page
