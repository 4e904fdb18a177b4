"""What ``accuracy`` prints, and what it concludes."""

from __future__ import annotations

from typing import Any

from _harness import print_table

Rows = list[dict[str, Any]]


def print_to_accuracy(rows: Rows) -> None:
    """Products and seconds of every solver on one problem, both targets side by side."""
    targets = sorted({row["target"] for row in rows}, reverse=True)
    found = {(row["solver"], row["target"]): row for row in rows}
    names = list(dict.fromkeys(row["solver"] for row in rows))

    def cells(name: str) -> list[str]:
        reached = [found[name, target] for target in targets]
        return [
            cell
            for row in reached
            for cell in (
                ["-", "-", "-"]
                if row["products"] is None
                else [str(row["products"]), str(row["kept"]), f"{1e3 * row['seconds']:.0f}"]
            )
        ]

    header = [f"{what} {target:.0e}" for target in targets for what in ("to", "kept", "ms")]
    print_table(
        f"{rows[0]['problem']}: products to the target, of these without preparation, milliseconds",
        ["solver", *header],
        [[name, *cells(name)] for name in names],
    )


def print_trajectories(rows: Rows) -> None:
    """Products along one trajectory."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    print_table(
        f"{rows[0]['problem']}: products of {len(rows[0]['each'])} outer steps, "
        f"{rows[0]['pace']:g} of the usual step size",
        ["residual", *ways],
        [
            [f"{rtol:.0e}", *(str(_one(rows, rtol=rtol, way=way)["products"]) for way in ways)]
            for (rtol,) in _keys(rows, "rtol")
        ],
    )


def conclusions(counted: Rows, trajectories: Rows) -> None:
    """Print how the three goals are met."""
    auto = [_auto(counted, *key) for key in _keys(counted, "problem", "target")]
    print_table(
        "Auto against the best solver in hindsight (goal: within 1.5 times)",
        ["problem", "target", "Auto", "best", "products", "ratio", "best by time", "ratio of time"],
        [
            [
                row["problem"],
                f"{row['target']:.0e}",
                str(row["products"]),
                row["best"],
                str(row["best_products"]),
                f"{row['ratio']:.2f}",
                row["fastest"],
                f"{row['ratio_of_seconds']:.2f}",
            ]
            for row in auto
        ],
    )
    nystrom = [_nystrom(counted, *key) for key in _keys(counted, "problem", "target")]
    print_table(
        "CG against CG with a Nystrom preconditioner, once (goal from 1e4 on: 3 times fewer)",
        ["problem", "target", "CG", "prepared", "fewer", "kept", "fewer"],
        [
            [
                row["problem"],
                f"{row['target']:.0e}",
                str(row["cg"]),
                str(row["once"]),
                _times(row["cg"], row["once"]),
                str(row["kept"]),
                _times(row["cg"], row["kept"]),
            ]
            for row in nystrom
        ],
    )
    ways = [way for (way,) in _keys(trajectories, "way") if way != "zero"]
    for what in ("products", "seconds"):
        found = [
            (key, _along(trajectories, what, *key))
            for key in _keys(trajectories, "problem", "pace", "rtol")
        ]
        print_table(
            f"Along the trajectory: times fewer {what} than by CG from zero (goal: 2)",
            ["problem", "pace", "residual", "from zero", *ways],
            [
                [
                    problem,
                    f"{pace:g}",
                    f"{rtol:.0e}",
                    f"{spent['zero']:.4g}",
                    *(_times(spent["zero"], spent[way]) for way in ways),
                ]
                for (problem, pace, rtol), spent in found
            ],
        )


def _auto(rows: Rows, problem: str, target: float) -> dict[str, Any]:
    among = [row for row in rows if (row["problem"], row["target"]) == (problem, target)]
    own = next(row for row in among if row["solver"] == "Auto")
    reached = [row for row in among if row["products"] is not None]
    best = min(reached, key=lambda row: row["products"])
    fastest = min(reached, key=lambda row: row["seconds"])
    missed = own["products"] is None
    return {
        "problem": problem,
        "target": target,
        "products": own["products"],
        "best": best["solver"],
        "best_products": best["products"],
        "ratio": float("inf") if missed else own["products"] / best["products"],
        "fastest": fastest["solver"],
        "ratio_of_seconds": float("inf") if missed else own["seconds"] / fastest["seconds"],
    }


def _nystrom(rows: Rows, problem: str, target: float) -> dict[str, Any]:
    plain = _one(rows, problem=problem, target=target, solver="CG")
    named = [
        row
        for row in rows
        if (row["problem"], row["target"]) == (problem, target)
        and row["solver"].startswith("CG, Nystrom")
        and row["products"] is not None
    ]
    return {
        "problem": problem,
        "target": target,
        "cg": plain["products"],
        "once": min((row["products"] for row in named), default=None),
        "kept": min((row["kept"] for row in named), default=None),
    }


def _along(rows: Rows, what: str, problem: str, pace: float, rtol: float) -> dict[str, float]:
    key = {"problem": problem, "pace": pace, "rtol": rtol}
    ways = [way for (way,) in _keys(rows, "way")]
    return {way: _one(rows, **key, way=way)[what] for way in ways}


def _keys(rows: Rows, *names: str) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(tuple(row[name] for name in names) for row in rows))


def _one(rows: Rows, **wanted: Any) -> dict[str, Any]:
    return next(row for row in rows if all(row[name] == value for name, value in wanted.items()))


def _times(more: float | None, fewer: float | None) -> str:
    return "-" if not more or not fewer else f"{more / fewer:.1f}"
