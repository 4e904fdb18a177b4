"""The comparison page: every method on every set under one protocol, resumable in pieces.

    python benchmarks/structured_comparison.py             # all sets, the small ones first
    python benchmarks/structured_comparison.py yeast scene # some of them
    python benchmarks/structured_comparison.py --page      # write docs/structured/comparison.md

Each set is one ``structured compare --methods all``, in ``runs/comparison/SET``; what is stopped
goes on where it was. Results go to ``benchmarks/results/comparison_SET.json``. All methods of a set
share its settings (`structured.presets`) and the number of trials of the search on validation rows.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _comparison_picture import draw
from _pages import fill

from structured._atomic import write_json
from structured.comparison import Comparison
from structured.evaluation import COLUMNS, JOINT

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "structured" / "comparison.md"
PICTURE = HERE.parent / "docs" / "assets" / "comparison.svg"

# Sizes and settings are those of `structured.presets`, the same for all methods of a set.
SMALL = "--trials 6 --seeds 5"
BIBTEX = "--trials 3 --seeds 3"
DELICIOUS = "--trials 2 --seeds 2"


@dataclass(frozen=True)
class Set:
    """A data set, a split, and what all methods share on it.

    Args:
        title: in the tables.
        options: of ``structured compare``.
        published: method -> example-F1 in print, in percent, each with its source and protocol.
    """

    title: str
    options: str
    published: Mapping[str, str]


_PRINTED_BIBTEX = {
    "cross-entropy": "42.5",
    "SPEN": "43.1",
    "DVN": "42.7; 45.9",
    "NCE": "20.1",
    "iALEN": "42.8",
    "ALEN": "46.4",
    "GSPEN": "48.6",
    "SEAL dynamic": "44.8",
    "implicit margin": "44.55",
    "implicit value": "44.94",
    "implicit contrastive": "46.21",
}
_PRINTED_DELICIOUS = {
    "cross-entropy": "30.1",
    "SPEN": "26.6",
    "DVN": "29.7",
    "NCE": "17.0",
    "SEAL dynamic": "34.7",
    "implicit margin": "30.34",
    "implicit value": "28.87",
    "implicit contrastive": "35.12",
}

SETS: Mapping[str, Set] = {
    "emotions": Set("emotions", f"--data emotions {SMALL}", {}),
    "birds": Set("birds", f"--data birds {SMALL}", {}),
    "cal500": Set("cal500", f"--data cal500 {SMALL}", {"SEAL dynamic": "41.6", "DVN": "47.7"}),
    "scene": Set("scene", f"--data scene {SMALL}", {}),
    "yeast": Set("yeast", f"--data yeast {SMALL}", {}),
    "bibtex3": Set(
        "bibtex, surrogate", f"--data bibtex --split split3_surrogate {BIBTEX}", _PRINTED_BIBTEX
    ),
    "bibtex": Set(
        "bibtex, Mulan", f"--data bibtex --split split --refit {BIBTEX}", _PRINTED_BIBTEX
    ),
    "delicious": Set(
        "delicious", f"--data delicious --split split3_surrogate {DELICIOUS}", _PRINTED_DELICIOUS
    ),
}


def command(name: str, jobs: int | None) -> list[str]:
    """The words of the `structured compare` of a set."""
    own = ["--jobs", str(jobs)] if jobs else []
    words = ["structured", "compare", "--methods", "all", "--threads", "1", "--no-plots"]
    return [*words, *shlex.split(SETS[name].options), *own]


def make(name: str, runs: Path, jobs: int | None) -> None:
    """Run or resume the comparison on one set, and keep its results."""
    folder = runs / name
    resume = ["--resume"] if folder.exists() else []
    words = [*command(name, jobs), "--output", str(folder), *resume]
    subprocess.run([sys.executable, "-m", *words], check=True)
    found = json.loads((folder / "comparison.json").read_text())
    write_json(
        RESULTS / f"comparison_{name}.json", {**found, "command": shlex.join(command(name, None))}
    )


def results() -> dict[str, Comparison]:
    """What has been measured, by set."""
    paths = {name: RESULTS / f"comparison_{name}.json" for name in SETS}
    return {
        name: Comparison.from_dict(json.loads(path.read_text()))
        for name, path in paths.items()
        if path.exists()
    }


def method_by_set(found: Mapping[str, Comparison], cell: Callable[[str, str], str]) -> str:
    """A table of what ``cell`` says of a set's name and a method; empty rows are left out."""
    methods = dict.fromkeys(
        method for comparison in found.values() for method in comparison.methods
    )
    rows = {method: [cell(name, method) for name in found] for method in methods}
    return "\n".join(
        [
            _row(["method", *(SETS[name].title for name in found)]),
            "|---|" + "---:|" * len(found),
            *(_row([method, *cells]) for method, cells in rows.items() if any(cells)),
        ]
    )


def records(found: Mapping[str, Comparison]) -> dict[str, dict[str, Any]]:
    """The summaries, by set and method."""
    return {
        name: {record["method"]: record for record in comparison.summary()}
        for name, comparison in found.items()
    }


def matrix(found: Mapping[str, Comparison], decoder: str) -> str:
    """Method by set: mean and deviation of example-F1 on test, in percent; the best is bold."""
    summaries = records(found)
    best = {
        name: max(
            record[decoder]["mean"]
            for method, record in by_method.items()
            if decoder in record and method != found[name].control
        )
        for name, by_method in summaries.items()
    }

    def cell(name: str, method: str) -> str:
        score = summaries[name].get(method, {}).get(decoder)
        return "" if score is None else _cell(score, best[name])

    return method_by_set(found, cell)


def differences(found: Mapping[str, Comparison], decoder: str) -> str:
    """Method by set: the difference to cross-entropy seed by seed, with its 95 % interval."""

    def cell(name: str, method: str) -> str:
        comparison = found[name]
        if method not in comparison.methods or method == comparison.baseline:
            return ""
        gap = comparison.difference(method, decoder)
        if gap is None:
            return ""
        margin = "" if gap.margin is None else f" ± {100 * gap.margin:.1f}"
        text = f"{100 * gap.mean:+.1f}{margin}"
        clear = gap.verdict != "no clear difference"
        return f"**{text}**" if clear and gap.mean > 0 else text

    return method_by_set(found, cell)


def times(found: Mapping[str, Comparison]) -> str:
    """Method by set: seconds of an epoch of the last phase / microseconds to predict a row."""
    summaries = records(found)

    def cell(name: str, method: str) -> str:
        record = summaries[name].get(method)
        if record is None or not record["seeds"]:
            return ""
        predicting = record.get("predict_seconds")
        text = f"{record['epoch_seconds']:.2f}"
        return text if predicting is None else f"{text} / {1000 * predicting:.0f}"

    return method_by_set(found, cell)


def costs() -> str:
    """What structured_family.py measured: a step of training, and predicting 1000 rows."""
    path = RESULTS / "structured_family.json"
    (found,) = json.loads(path.read_text())["results"]
    lines = [
        f"{found['data']}, batches of {found['batch_size']}, one thread; the ratios are to "
        f"{found['reference']}.",
        "",
        _row(["method", "ms / step", "ratio", "ms / 1000 rows", "ratio"]),
        "|---|" + "---:|" * 4,
    ]
    for row in found["methods"]:
        training, predicting = row["step_over_reference"], row["prediction_over_reference"]
        cells = [
            f"{row['ms_per_step']:.1f}",
            f"{training['ratio_of_medians']:.2f}",
            f"{row['ms_per_1000_rows']:.1f}",
            f"{predicting['ratio_of_medians']:.2f}",
        ]
        lines.append(_row([row["method"], *cells]))
    return "\n".join(lines)


def printed(found: Mapping[str, Comparison]) -> str:
    """Published figures beside ours under the two decoders that papers use or could."""
    lines = [
        _row(["set", "method", "published", *COLUMNS]),
        "|---|---|---:|" + "---:|" * len(COLUMNS),
    ]
    for name, comparison in found.items():
        records = {record["method"]: record for record in comparison.summary()}
        for method, figure in SETS[name].published.items():
            record = records.get(method, {})
            cells = [
                f"{100 * record[column]['mean']:.1f}" if column in record else ""
                for column in COLUMNS
            ]
            lines.append(_row([SETS[name].title, method, figure, *cells]))
    return "\n".join(lines)


def chosen(found: Mapping[str, Comparison]) -> str:
    """What the search chose, set by set."""
    lines: list[str] = []
    for name, comparison in found.items():
        lines += [
            f"**{SETS[name].title}**",
            "",
            *(f"- {line}" for line in comparison.choices()),
            "",
        ]
    return "\n".join(lines).rstrip()


def protocol(found: Mapping[str, Comparison]) -> str:
    """The sizes and settings of each set, and the command."""
    lines = [_row(["set", "rows: training, validation, test", "trials", "seeds", "command"])]
    lines.append("|---|---|---:|---:|---|")
    for name, comparison in found.items():
        rows = ", ".join(str(comparison.sizes[f"{part} rows"]) for part in _PARTS)
        cells = [SETS[name].title, rows, str(comparison.trials), str(len(comparison.seeds))]
        lines.append(_row([*cells, f"`{shlex.join(command(name, None))}`"]))
    return "\n".join(lines)


_PARTS = ("training", "validation", "test")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(score: Mapping[str, float], best: float) -> str:
    spread = "" if score["deviation"] is None else f" ± {100 * score['deviation']:.1f}"
    text = f"{100 * score['mean']:.1f}{spread}"
    return f"**{text}**" if score["mean"] == best else text


def page() -> None:
    """Put the tables between their marks in the page, and draw its picture."""
    found = results()
    draw({SETS[name].title: comparison for name, comparison in found.items()}, JOINT, PICTURE)
    tables = {
        "joint": matrix(found, JOINT),
        "tuned": matrix(found, "tuned threshold"),
        "half": matrix(found, "threshold 0.5"),
        "differences": differences(found, JOINT),
        "times": times(found),
        "costs": costs(),
        "published": printed(found),
        "chosen": chosen(found),
        "protocol": protocol(found),
    }
    fill(PAGE, tables)


def main() -> None:
    """Run the comparisons named, or all; or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}")
    parser.add_argument("--page", action="store_true", help="write the page; run nothing")
    parser.add_argument("--jobs", type=int, help="runs side by side; by default one a core")
    parser.add_argument("--runs", type=Path, default=Path("runs/comparison"), help="of the runs")
    options = parser.parse_args()
    unknown = [name for name in options.sets if name not in SETS]
    if unknown:
        parser.error(f"no set {unknown[0]!r}; there are {', '.join(SETS)}")
    if not options.page:
        for name in options.sets or SETS:
            make(name, options.runs, options.jobs)
    page()


if __name__ == "__main__":
    main()
