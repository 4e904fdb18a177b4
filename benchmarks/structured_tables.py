"""The tables of docs/structured/results.md: one `structured compare` each, resumable.

    python benchmarks/structured_tables.py bibtex       # Mulan's split, 5 seeds, refitted
    python benchmarks/structured_tables.py bibtex3      # the surrogate of the published split
    python benchmarks/structured_tables.py delicious3   # the same on delicious, 3 seeds
    python benchmarks/structured_tables.py --page       # write the tables of the JSON into the page

Each run is in ``runs/tables/NAME``; a table that is stopped goes on where it was. The results are
copied to ``benchmarks/results/structured_NAME.json`` after the last run, or with --keep those of
the seeds that all methods have done.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from _pages import fill

from structured._atomic import write_json
from structured.comparison import Comparison

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "structured" / "results.md"
COLUMNS = ("threshold 0.5", "tuned threshold", "expected F1", "joint expected F1")

PRIMARIES = (
    "primary=Margin, sampler=StraightThrough",
    "primary=Value, sampler=StraightThrough",
    "primary=ContrastiveDivergence",
)


def methods(lr: float, pretrain_epochs: int) -> list[str]:
    """The methods of a table, as specifications of the command line.

    The network settles with cross-entropy first, then moves little while the energy learns: so it
    was best on validation rows, see structured_search.py.

    Args:
        lr: of cross-entropy.
        pretrain_epochs: of the implicit method.
    """
    rates = (
        f"pretrain_epochs={pretrain_epochs}, pretrain_lr=0.002, inner_lr=0.0002, outer_lr=0.01, "
        "outer_every=2, primary.samples=20"
    )
    ours = [
        f"implicit: {primary}, {rates}, gradient={gradient}"
        for primary in PRIMARIES
        for gradient in ("direct", "implicit")
    ]
    return [f"cross_entropy: lr={lr}", *ours]


SETTINGS = "--batch-size 128 --patience 5 --average 0.998 --energy-hidden 16 --threads 1 --no-plots"
BIBTEX = ("--data bibtex --epochs 26 --monitor f1_joint", methods(lr=0.003, pretrain_epochs=12))
# A thousand labels: joint decoding after every epoch would take longer than training.
DELICIOUS = (
    "--data delicious --hidden 512 --epochs 32 --monitor f1_expected",
    methods(lr=0.002, pretrain_epochs=18),
)
TABLES = {
    "bibtex": ("--split split --refit --seeds 5", *BIBTEX),
    "bibtex3": ("--split split3_surrogate --seeds 5", *BIBTEX),
    "delicious3": ("--split split3_surrogate --seeds 3", *DELICIOUS),
}


def command(name: str) -> list[str]:
    """The words of the `structured compare` that makes a table."""
    split, data, specifications = TABLES[name]
    words = ["structured", "compare", *shlex.split(f"{data} {split} {SETTINGS}")]
    for method in specifications:
        words += ["--method", method]
    return words


def make(name: str, runs: Path) -> None:
    """Run or resume one comparison, and keep its results."""
    folder = runs / name
    resume = ["--resume"] if (folder / "comparison.json").exists() or folder.exists() else []
    words = [sys.executable, "-m", *command(name), "--output", str(folder), *resume]
    subprocess.run(words, check=True)
    keep(name, runs)


def keep(name: str, runs: Path) -> None:
    """Copy the results of the seeds that all methods have done."""
    found = Comparison.from_dict(json.loads((runs / name / "comparison.json").read_text()))
    done = [set(found.scores(method, COLUMNS[0])) for method in found.methods]
    seeds = tuple(sorted(set.intersection(*done)))
    kept = tuple(run for run in found.runs if run.seed in seeds)
    words = command(name)
    words[words.index("--seeds") + 1] = str(len(seeds))
    result = replace(found, seeds=seeds, runs=kept, command=shlex.join(words))
    write_json(RESULTS / f"structured_{name}.json", result.to_dict())


def markdown(found: dict[str, Any]) -> str:
    """One comparison as a table with what a reader must know to repeat it."""
    rows = ", ".join(f"{count} {part}" for part, count in found["sizes"].items())
    again = "; what is scored is trained anew on training and validation rows together"
    again = again if found["training"].get("refit") else ""
    lines = [
        f"{found['data']}, split `{found['split']}`: {rows}{again}. Example-F1 on the test part in "
        f"percent, mean ± deviation over {len(found['seeds'])} seeds.",
        "",
        "| method | " + " | ".join(COLUMNS) + " | s / epoch |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    for record in found["summary"]:
        cells = [_cell(record[column]) for column in COLUMNS]
        lines.append(
            f"| {record['method']} | " + " | ".join(cells) + f" | {record['epoch_seconds']:.1f} |"
        )
    comparison = Comparison.from_dict(found)
    lines += ["", "Differences in example-F1, seed by seed, with 95 % intervals over seeds:", ""]
    lines += ["| | against | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * len(COLUMNS)]
    for method in list(found["methods"])[1:]:
        other = method.replace("implicit-", "direct-")
        for baseline in [comparison.baseline] + ([other] if other != method else []):
            gaps = [_gap(comparison, method, baseline, column) for column in COLUMNS]
            lines.append(f"| {method} | {baseline} | " + " | ".join(gaps) + " |")
    return "\n".join(lines)


def _gap(comparison: Comparison, method: str, baseline: str, column: str) -> str:
    """The difference of two methods under one decoder; bold where the interval leaves out 0."""
    first = {baseline: comparison.methods[baseline]}
    gap = replace(comparison, methods=first).difference(method, column)
    if gap is None:
        return ""
    margin = "" if gap.margin is None else f" ± {100 * gap.margin:.2f}"
    text = f"{100 * gap.mean:+.2f}{margin}"
    return text if gap.verdict == "no clear difference" else f"**{text}**"


def _cell(score: dict[str, Any]) -> str:
    deviation = score["deviation"]
    spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
    return f"{100 * score['mean']:.2f}{spread}"


def tried(found: dict[str, Any]) -> str:
    """What the search tried, a row per trial, means over its seeds."""
    rows: dict[str, list[dict[str, float]]] = {}
    for trial in found["trials"]:
        rows.setdefault(trial["trial"], []).append(trial["example_f1"])
    lines = [
        "| trial | seeds | " + " | ".join(COLUMNS) + " |",
        "|---|---:|" + "---:|" * len(COLUMNS),
    ]
    for name, scores in sorted(rows.items()):
        means = [sum(score[column] for score in scores) / len(scores) for column in COLUMNS]
        cells = " | ".join(f"{mean:.2f}" for mean in means)
        lines.append(f"| {name} | {len(scores)} | {cells} |")
    return "\n".join(lines)


def page() -> None:
    """Put the table of every results file between its marks in the page."""
    files = {name: (f"structured_{name}", markdown) for name in TABLES}
    files["search"] = ("structured_search_bibtex_split", tried)
    paths = {name: (RESULTS / f"{file}.json", write) for name, (file, write) in files.items()}
    fill(
        PAGE,
        {
            name: write(json.loads(path.read_text()))
            for name, (path, write) in paths.items()
            if path.exists()
        },
    )


def main() -> None:
    """Make a table, or the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", choices=TABLES)
    parser.add_argument("--page", action="store_true", help="write the page from the JSON files")
    parser.add_argument("--keep", action="store_true", help="keep the seeds done; run nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"), help="where the runs are")
    options = parser.parse_args()
    if options.table is None and not options.page:
        parser.error("name a table, or --page")
    if options.table is not None:
        (keep if options.keep else make)(options.table, options.runs)
    if options.page:
        page()


if __name__ == "__main__":
    main()
