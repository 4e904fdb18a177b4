"""Fixed budgets on four kinds of networks and four sizes, beside the hand-written floor.

    python -m benchmarks speed --quick
    python -m benchmarks speed --kinds mlp lstm --sizes 1000 30000 --budgets 20 --compile

The floor, the library and, with ``--compile``, the compiled path make the same products, in turn;
``peers.py`` sets other libraries beside them. Every answer is held against the floor's in double
precision: beyond ten times the floor's own error, and beyond a thousandth, it is called wrong.
Compiling takes up to a minute for every network and solver.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from _floor import cg, flat, neumann
from _harness import Contender, arguments, compare, interleave, milliseconds, print_table, save
from _models import WIDTHS, Leaves, Network, network
from _peers import Peer

import bilevel

Row = dict[str, Any]
STEP = 0.1  # of the Neumann series: well inside 2 / largest eigenvalue for every network here
WRONG = 1e-3
# What one run can afford: a round of the largest takes as long as ten of the others together.
BUDGETS: dict[int, tuple[int, ...]] = {
    1_000: (10, 20, 50),
    30_000: (10, 20, 50),
    300_000: (20,),
    2_000_000: (10,),
}
SIZES = tuple(BUDGETS)
FLOORS: dict[str, Callable[[Network, int], Leaves]] = {
    "Neumann": lambda net, products: neumann(net, products, STEP),
    "CG": cg,
}
SOLVERS: dict[str, Callable[[int], bilevel.Solver]] = {
    "Neumann": lambda products: bilevel.Neumann(products, step=STEP),
    "CG": lambda products: bilevel.CG(rtol=None, max_steps=products - 1),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "--kinds": {"nargs": "+", "choices": list(WIDTHS), "default": list(WIDTHS)},
    "--sizes": {"nargs": "+", "type": int, "choices": SIZES, "default": list(SIZES)},
    "--budgets": {"nargs": "+", "type": int, "help": "products (default: by the size)"},
    "--solvers": {"nargs": "+", "choices": list(SOLVERS), "default": list(SOLVERS)},
    "--seconds": {"type": float, "default": 15.0, "help": "for the rounds of one table, about"},
    "--longest": {"type": float, "default": 60.0, "help": "a round that peers may make it last"},
    "--label": {"default": "", "help": "added to the name of the JSON file"},
    "--compile": {"action": "store_true", "help": "also the compiled path"},
}


@dataclass(frozen=True)
class Wanted:
    """The floor's answers in double precision, by solver and steps beyond the floor's.

    ``seconds`` is the processor's time of one of them: about that of the average contender.
    """

    answers: dict[tuple[str, int], Leaves]
    seconds: float


Others = Callable[[Network, list[Row], dict[int, Wanted]], None]


@dataclass(frozen=True)
class Entry:
    """One contender of one table; with the peer that it is of, if it is of one."""

    name: str
    solver: str
    run: Contender
    peer: Peer | None = None


class _Kept:
    """A contender that keeps its last answer, or what kept it from one.

    The recurrent kernels of oneDNN know neither forward mode nor the transforms of
    ``torch.func``: who fails is asked once more with the plain kernels, and its row says so.
    """

    def __init__(self, run: Contender) -> None:
        self.run = run
        self.answer: Leaves | None = None
        self.remark = ""
        self.first_call: float | None = None

    def __call__(self) -> None:
        if self.remark and self.answer is None:
            return
        try:
            if self.first_call is None:
                self._first()
            else:
                self.answer = self.run()
        except Exception as error:  # whatever keeps a peer from running is its row
            self.remark = reason(error)
            self.run = without_onednn(self.run)
            try:
                self.answer = self.run()
            except Exception:
                return
            self.remark = f"oneDNN off ({self.remark})"

    def _first(self) -> None:
        """The call that compiles; what is computed plainly after all is said in the row."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", bilevel.CompileWarning)
            begin = time.perf_counter()
            self.answer = self.run()
            self.first_call = time.perf_counter() - begin
        refused = [one for one in said if issubclass(one.category, bilevel.CompileWarning)]
        if refused:
            self.remark = f"not compiled: {str(refused[0].message)[:80]}"


def without_onednn(run: Contender) -> Contender:
    """The same by PyTorch's own kernels."""

    def contender() -> Any:
        with torch.backends.mkldnn.flags(enabled=False):
            return run()

    return contender


def reason(error: Exception) -> str:
    """The first sentence of an error, in one line."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line[:80]}"


def library(net: Network, solver: bilevel.Solver, compiled: bool) -> Contender:
    """The library's hypergradient, its batches given as arguments."""
    problem = bilevel.ImplicitProblem(
        net.outer, net.inner, solver, on_failure="ignore", compile=compiled
    )
    return lambda: problem.implicit_grad(
        net.phi, net.theta, outer_args=net.validation, inner_args=net.batch
    )


def entries(net: Network, budget: int, options: Any, peers: Sequence[Peer]) -> list[Entry]:
    """Everybody who takes part, the floor of every solver first."""
    found = []
    for solver in options.solvers:
        floor = FLOORS[solver]
        found.append(Entry("floor", solver, lambda floor=floor: floor(net, budget)))
        found.append(Entry("bilevel", solver, library(net, SOLVERS[solver](budget), False)))
        if options.compile:
            compiled = library(net, SOLVERS[solver](budget), True)
            found.append(Entry("bilevel, compiled", solver, compiled))
        found += [
            Entry(peer.name, solver, peer.make(net, budget, STEP), peer)
            for peer in peers
            if peer.solver == solver
        ]
    return found


def references(net: Network, budget: int, solvers: Sequence[str], most: int = 1) -> Wanted:
    """The answers to hold others against, up to ``most`` steps beyond the floor's."""
    double = lambda leaves: {key: leaf.double() for key, leaf in leaves.items()}  # noqa: E731
    exact = replace(
        net,
        phi=double(net.phi),
        theta=double(net.theta),
        batch=(net.batch[0].double(), net.batch[1].double()),
        validation=(net.validation[0].double(), net.validation[1].double()),
    )
    begin = time.process_time()
    answers = {
        (name, more): FLOORS[name](exact, budget + more)
        for name in solvers
        for more in range(most + 1)
    }
    return Wanted(answers, (time.process_time() - begin) / len(answers))


def error(found: Leaves, wanted: Leaves) -> float:
    """``||found - wanted|| / ||wanted||``."""
    a, b = flat(list(found.values())).double(), flat(list(wanted.values())).double()
    return ((a - b).norm() / b.norm()).item()


def verdict(found: float, of_floor: float, unrolled: bool) -> str:
    """Empty where the answer is what the solver is named for."""
    if unrolled:
        return "another estimate"
    return "" if found <= max(WRONG, 10 * of_floor) else "wrong"


def interleaved(kept: dict[str, _Kept], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of everybody in every round.

    Each comes after a call of its own that is not timed: caches hold what it needs, as they do in a
    loop, and as for the libraries that are timed in a process of their own.
    """
    turns: dict[str, Contender] = {}
    for name, run in kept.items():
        turns[f"before {name}"] = run
        turns[name] = run
    return interleave(turns, rounds, device)


def measure(
    net: Network, budget: int, wanted: Wanted, options: Any, peers: Sequence[Peer]
) -> list[Row]:
    """All solvers by everybody, in turn: two rounds, and more as ``options.seconds`` allow.

    Where a round would last more than ``options.longest`` seconds, peers are left out.
    """
    everybody = {f"{e.solver}: {e.name}": e for e in entries(net, budget, options, peers)}
    kept = {name: _Kept(entry.run) for name, entry in everybody.items()}
    lasting = 2 * wanted.seconds * len(everybody)
    if lasting > options.longest:
        for name in (name for name, entry in everybody.items() if entry.peer):
            kept[name].remark = f"left out: a round would last about {lasting:.0f} s"
    taking_part = {name: run for name, run in kept.items() if not run.remark}
    rounds = max(2, min(options.repeats, int(options.seconds / lasting)))
    seconds = interleaved(taking_part, rounds, options.device)
    rows = []
    for name, entry in everybody.items():
        row: Row = {
            "problem": net.name,
            "products": budget,
            "solver": entry.solver,
            "contender": entry.name,
        }
        if kept[name].answer is None:
            rows.append({**row, "verdict": "no answer", "remark": kept[name].remark})
            continue
        floor, library = f"{entry.solver}: floor", f"{entry.solver}: bilevel"
        rows.append(
            {
                **row,
                "rounds": rounds,
                "milliseconds": milliseconds(seconds[name]),
                **compare(seconds[name], seconds[floor]),
                "to_bilevel": to(seconds[name], seconds[library]),
                **judged(entry, kept[name], kept[floor], wanted),
                "remark": kept[name].remark,
                "first_call_seconds": kept[name].first_call,
            }
        )
    return rows


def judged(entry: Entry, own: _Kept, floor: _Kept, wanted: Wanted) -> Row:
    """The error of an answer, and what is said of it."""
    assert own.answer is not None
    assert floor.answer is not None
    extra = entry.peer.extra if entry.peer else 0
    found = error(own.answer, wanted.answers[entry.solver, extra])
    of_floor = error(floor.answer, wanted.answers[entry.solver, 0])
    unrolled = entry.peer is not None and entry.peer.unrolled
    return {"error": found, "verdict": verdict(found, of_floor, unrolled)}


def to(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Ratio of medians."""
    return statistics.median(seconds) / statistics.median(reference)


def show(rows: Sequence[Row]) -> None:
    """The table of one network and budget."""

    def cell(row: Row, key: str, form: str) -> str:
        return format(row[key], form) if key in row else "-"

    print_table(
        f"{rows[0]['problem']}, {rows[0]['products']} products",
        ["contender", "ms", "to the floor", "to bilevel", "error", "first call, s", "remark"],
        [
            [
                f"{row['solver']}: {row['contender']}",
                cell(row, "milliseconds", ".2f"),
                cell(row, "ratio_of_medians", ".2f"),
                cell(row, "to_bilevel", ".2f"),
                cell(row, "error", ".0e"),
                cell(row, "first_call_seconds", ".1f"),
                ": ".join(filter(None, (row["verdict"], row["remark"]))),
            ]
            for row in rows
        ],
    )


def suite(
    options: Any,
    keep: Callable[[list[Row]], None],
    peers: Sequence[Peer] = (),
    others: Others | None = None,
) -> None:
    """Measure and show every network and budget asked for.

    ``others`` adds rows of its own to those of one network, given the answers at every budget;
    ``keep`` gets all rows after each network, so that a run cut short leaves what it found.
    """
    most = max((peer.extra for peer in peers), default=0)
    torch.set_num_threads(options.threads[0])
    results: list[Row] = []
    for kind in options.kinds:
        for size in options.sizes[:1] if options.quick else options.sizes:
            net = network(kind, size, options.device)
            budgets = options.budgets or BUDGETS[size]
            wanted = {
                budget: references(net, budget, options.solvers, most)
                for budget in (budgets[:1] if options.quick else budgets)
            }
            rows = []
            for budget, answers in wanted.items():
                rows += measure(net, budget, answers, options, peers)
            if others is not None:
                others(net, rows, wanted)
            for budget in wanted:
                show([row for row in rows if row["products"] == budget])
            results += rows
            keep(results)


def main() -> None:
    """Time, print, save."""
    options = arguments("Time fixed budgets beside a hand-written floor.", 9, OPTIONS)
    warnings.simplefilter("ignore", DeprecationWarning)
    suite(options, lambda rows: save(f"speed{options.label}", options, rows))


if __name__ == "__main__":
    main()
