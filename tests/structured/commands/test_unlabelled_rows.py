"""`structured predict` on rows whose labels are not known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from structured.data import MultiLabelData
from tests.structured.commands.cli import LABELS, ok


def test_predict_does_not_look_at_labels_in_any_format(
    trained: Path, file: Path, data: MultiLabelData
) -> None:
    wanted = ok("predict", trained, file, "--json").stdout
    X = data.dense()[0]
    np.savez("rows.npz", X=X, feature_names=np.array(data.feature_names))
    names = [*data.feature_names, *LABELS]
    header = ["@relation coast", *(f"@attribute '{name}' numeric" for name in names), "@data"]
    lines = [",".join([*map(repr, row), "?", "?", "?"]) for row in X.tolist()]
    Path("rows.arff").write_text("\n".join([*header, *lines]) + "\n")
    pairs = [" ".join(f"{k + 1}:{value!r}" for k, value in enumerate(row)) for row in X.tolist()]
    Path("rows.svm").write_text(
        "".join(f"{'?' if k % 2 else -1} {p}\n" for k, p in enumerate(pairs))
    )
    assert ok("predict", trained, "rows.npz", "--json").stdout == wanted
    assert ok("predict", trained, "rows.arff", "--json").stdout == wanted
    assert ok("predict", trained, "rows.svm", "--features-from", 1, "--json").stdout == wanted
