"""What the benchmarks share: interleaved timings, the machine they ran on, tables, JSON files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import bilevel

RESULTS = Path(__file__).parent / "results"
Contender = Callable[[], Any]


def arguments(
    description: str, repeats: int, own: Mapping[str, Mapping[str, Any]] | None = None
) -> argparse.Namespace:
    """The command line that every benchmark has, with the options that one has of its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="where to compute, such as cpu or cuda")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="CPU threads to try")
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds; every one in turn")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--quick", action="store_true", help="two rounds, to see that it runs")
    for name, options in (own or {}).items():
        parser.add_argument(name, **options)
    parsed = parser.parse_args()
    parsed.repeats = 2 if parsed.quick else parsed.repeats
    return parsed


def interleave(
    contenders: dict[str, Contender], repeats: int, device: str
) -> dict[str, list[float]]:
    """Seconds of every contender in every round.

    All of them run in each round, in an order that rotates, so that what slows the machine down for
    a while slows them all down. On one CPU thread it is the processor's time that counts, which
    other work on the machine hardly changes.
    """
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    names = list(contenders)
    for name in names:  # compile, allocate, warm up
        contenders[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(repeats):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            wait()
            begin = clock()
            contenders[name]()
            wait()
            seconds[name].append(clock() - begin)
    return seconds


def milliseconds(seconds: Sequence[float]) -> float:
    """The median, in milliseconds."""
    return 1000 * statistics.median(seconds)


def compare(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """How many times the reference a contender takes: of the medians, and over the rounds."""
    rounds = sorted(a / b for a, b in zip(seconds, reference, strict=True))
    quarter = len(rounds) // 4
    return {
        "ratio_of_medians": statistics.median(seconds) / statistics.median(reference),
        "ratio_lower_quartile": rounds[quarter],
        "ratio_upper_quartile": rounds[-1 - quarter],
    }


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    facts: dict[str, Any] = {
        "bilevel": bilevel.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
    }
    if hasattr(os, "getloadavg"):
        facts["load_average"] = round(os.getloadavg()[0], 1)
    return facts


def save(name: str, options: argparse.Namespace, results: Any) -> None:
    """Write the figures to a JSON file, with the machine and how far they can be trusted."""
    report = {
        "machine": machine(options.device),
        "repeats": options.repeats,
        "note": "Wall-clock times of a machine that may have run other work at the same time (see "
        "load_average): they are noisy, and ratios within a run mean more than milliseconds.",
        "results": results,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    suffix = "" if options.device == "cpu" else f"-{options.device.partition(':')[0]}"
    path = options.output / f"{name}{suffix}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nfigures: {path}")


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        aligned = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        return "  ".join([first.ljust(widths[0]), *aligned])

    print(f"\n{title}\n{line(header)}\n{'-' * len(line(header))}")
    for row in rows:
        print(line(row))
