"""What was tried before the tables were made: every trial, on validation rows alone.

The training part of the split is divided (iterative stratification, seed 0) into rows to learn
from and rows to judge by; the test part is never read. Each trial is one method with one setting.
The results file keeps every trial of every seed, good or bad; what is in it is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _harness import RESULTS, machine

from structured._atomic import write_json
from structured.commands.specs import parse_method
from structured.data import load, train_validation_test
from structured.evaluation import COLUMNS, VALIDATION, evaluate, with_joint
from structured.models import ModelConfig
from structured.train_config import TrainConfig
from structured.training import train

CONFIG = TrainConfig(batch_size=128, epochs=60, patience=8, average=0.998, device="cpu")
# Where the energy learns after the network: judged by what both together decode.
JOINTLY = replace(CONFIG, patience=6, monitor="f1_joint")
SETTLED = "network settled"
EARLY = "chosen by expected F1"  # which picks epochs before the energy has learned
RATES = "inner_lr=0.002, pretrain_lr=0.002"
FAST = "inner_lr=0.003, pretrain_lr=0.003"
FASTER = "inner_lr=0.005, pretrain_lr=0.005"
CD = f"implicit: primary=ContrastiveDivergence, primary.samples=20, {RATES}"
MARGIN = f"implicit: primary=Margin, {RATES}"
VALUE = f"implicit: primary=Value, {RATES}"

# name -> (method, sizes that differ from the defaults)
TRIALS: dict[str, tuple[str, dict[str, Any]]] = {
    "cross-entropy, rate 1e-3": ("cross_entropy: lr=0.001", {}),
    "cross-entropy, rate 2e-3": ("cross_entropy: lr=0.002", {}),
    "cross-entropy, rate 3e-3": ("cross_entropy: lr=0.003", {}),
    "cross-entropy, rate 2e-3, decay 0.1": ("cross_entropy: lr=0.002, weight_decay=0.1", {}),
    "cross-entropy, rate 5e-3": ("cross_entropy: lr=0.005", {}),
    "cross-entropy, rate 8e-3": ("cross_entropy: lr=0.008", {}),
    "contrastive divergence, small f, all rates 3e-3": (
        f"{CD}, outer_lr=0.005, {FAST}",
        {"energy_hidden": [16]},
    ),
    "contrastive divergence, small f, all rates 3e-3, lam 0.3": (
        f"{CD}, outer_lr=0.005, {FAST}, ce_weight=0.3",
        {"energy_hidden": [16]},
    ),
    "contrastive divergence, small f, all rates 5e-3": (
        f"{CD}, outer_lr=0.005, {FASTER}",
        {"energy_hidden": [16]},
    ),
    **{
        f"contrastive divergence, energy sooner: rates {rate}, outer rate {outer}, lam {lam}": (
            f"{CD}, outer_lr={outer}, inner_lr={rate}, pretrain_lr={rate}, ce_weight={lam}, "
            "pretrain_epochs=4, outer_every=2",
            {"energy_hidden": [16]},
        )
        for rate, outer, lam in (
            (0.003, 0.01, 1.0),
            (0.003, 0.01, 3.0),
            (0.003, 0.03, 3.0),
            (0.003, 0.01, 10.0),
            (0.002, 0.01, 3.0),
        )
    },
    **{
        f"{name}, {SETTLED}: rates {rate}, {inner}, outer {outer}": (
            f"{spec}, pretrain_lr={rate}, pretrain_epochs=12, inner_lr={inner}, outer_lr={outer}, "
            "outer_every=2",
            {"energy_hidden": [16]},
        )
        for name, spec in (
            ("contrastive divergence", CD),
            ("margin", f"{MARGIN}, sampler=StraightThrough, primary.samples=20"),
            ("value", f"{VALUE}, sampler=StraightThrough, primary.samples=20"),
        )
        for rate, inner, outer in (
            (0.003, 0.0003, 0.01),
            (0.002, 0.0002, 0.01),
            (0.002, 0.0005, 0.01),
            (0.002, 0.0002, 0.03),
        )
    },
    **{
        (
            f"contrastive divergence, {SETTLED}, {EARLY}: rates {rate}, {inner}, "
            f"outer {outer}, lam {lam}"
        ): (
            f"{CD}, pretrain_lr={rate}, pretrain_epochs=12, inner_lr={inner}, outer_lr={outer}, "
            f"ce_weight={lam}, outer_every=2",
            {"energy_hidden": [16]},
        )
        for rate, inner, outer, lam in (
            (0.003, 0.0003, 0.01, 1.0),
            (0.002, 0.0002, 0.01, 1.0),
            (0.003, 0.0003, 0.03, 1.0),
            (0.003, 0.0003, 0.01, 3.0),
        )
    },
    f"contrastive divergence, {SETTLED}: no cardinality": (
        f"{CD}, pretrain_lr=0.002, pretrain_epochs=12, inner_lr=0.0002, outer_lr=0.01, "
        "outer_every=2",
        {"energy_hidden": [16], "cardinality": 0},
    ),
    "contrastive divergence": (CD, {}),
    "contrastive divergence, outer rate 5e-3": (f"{CD}, outer_lr=0.005", {}),
    "contrastive divergence, direct": (f"{CD}, outer_lr=0.005, gradient=direct", {}),
    "contrastive divergence, outer rate 5e-3, decay 1": (
        f"{CD}, outer_lr=0.005, outer_weight_decay=1.0",
        {},
    ),
    "contrastive divergence, outer rate 5e-3, no path": (
        f"{CD}, outer_lr=0.005, sampler=NoPathHard",
        {},
    ),
    "contrastive divergence, outer rate 5e-3, lam 3": (f"{CD}, outer_lr=0.005, ce_weight=3.0", {}),
    "contrastive divergence, outer rate 5e-3, no cardinality": (
        f"{CD}, outer_lr=0.005",
        {"cardinality": 0},
    ),
    "contrastive divergence, outer rate 5e-3, small f": (
        f"{CD}, outer_lr=0.005",
        {"energy_hidden": [16]},
    ),
    "contrastive divergence, outer rate 1e-2, small f": (
        f"{CD}, outer_lr=0.01",
        {"energy_hidden": [16]},
    ),
    "contrastive divergence, outer rate 5e-3, every 2 minibatches": (
        f"{CD}, outer_lr=0.005, outer_every=2",
        {},
    ),
    "contrastive divergence, outer rate 5e-3, small f, lam 0.3": (
        f"{CD}, outer_lr=0.005, ce_weight=0.3",
        {"energy_hidden": [16]},
    ),
    "contrastive divergence, outer rate 5e-3, small f, 60 samples": (
        f"{CD}, outer_lr=0.005, primary.samples=60",
        {"energy_hidden": [16]},
    ),
    "margin": (MARGIN, {}),
    "margin, outer rate 5e-3": (f"{MARGIN}, outer_lr=0.005", {}),
    "margin, outer rate 5e-3, direct": (f"{MARGIN}, outer_lr=0.005, gradient=direct", {}),
    "margin, straight-through": (f"{MARGIN}, outer_lr=0.005, sampler=StraightThrough", {}),
    "margin, 20 straight-through samples": (
        f"{MARGIN}, outer_lr=0.005, sampler=StraightThrough, primary.samples=20",
        {},
    ),
    "value": (VALUE, {}),
    "value, outer rate 5e-3": (f"{VALUE}, outer_lr=0.005", {}),
    "margin, 20 straight-through samples, small f": (
        f"{MARGIN}, outer_lr=0.005, sampler=StraightThrough, primary.samples=20",
        {"energy_hidden": [16]},
    ),
    "margin, 20 straight-through samples, small f, lam 0.3": (
        f"{MARGIN}, outer_lr=0.005, sampler=StraightThrough, primary.samples=20, ce_weight=0.3",
        {"energy_hidden": [16]},
    ),
    "value, 20 straight-through samples, small f": (
        f"{VALUE}, outer_lr=0.005, sampler=StraightThrough, primary.samples=20",
        {"energy_hidden": [16]},
    ),
    "value, 20 straight-through samples, small f, lam 0.3": (
        f"{VALUE}, outer_lr=0.005, sampler=StraightThrough, primary.samples=20, ce_weight=0.3",
        {"energy_hidden": [16]},
    ),
    "value, 20 straight-through samples": (
        f"{VALUE}, outer_lr=0.005, sampler=StraightThrough, primary.samples=20",
        {},
    ),
}


def judge(name: str, data: str, split: str, seed: int) -> dict[str, Any]:
    """Train one trial and score its best epoch on validation rows."""
    spec, sizes = TRIALS[name]
    method = parse_method(spec)
    training, validation, _ = train_validation_test(load(data), split)
    config = replace(JOINTLY if SETTLED in name and EARLY not in name else CONFIG, seed=seed)
    model = ModelConfig.from_dict(sizes)
    result = train(method, training, validation, config, model=model, progress=False)
    inputs, gold = {VALIDATION: validation.X}, {VALIDATION: validation.Y}
    found = evaluate({VALIDATION: result.predict(validation.X)}, gold, seed=seed)
    found = with_joint(found, method, result.models, inputs, gold)
    scores = found.scores[VALIDATION]
    return {
        "trial": name,
        "method": spec,
        "sizes": sizes,
        "seed": seed,
        "monitor": config.monitor,
        "patience": config.patience,
        "example_f1": {column: 100 * scores[column].example_f1 for column in COLUMNS},
        "scale": found.thresholds.get(COLUMNS[-1]),
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "seconds": result.total_seconds,
    }


def summary(records: list[dict[str, Any]]) -> None:
    """Print the mean of every trial over its seeds."""
    print(f"{'trial':58}" + "".join(f"{column:>18}" for column in COLUMNS) + "  seeds  s/run")
    for name in dict.fromkeys(record["trial"] for record in records):
        own = [record for record in records if record["trial"] == name]
        means = [statistics.mean(r["example_f1"][column] for r in own) for column in COLUMNS]
        cost = statistics.mean(r["seconds"] for r in own)
        print(f"{name:58}" + "".join(f"{m:18.2f}" for m in means) + f"{len(own):7d}{cost:7.0f}")


def main() -> None:
    """Run the trials that are not in the results file yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="bibtex")
    parser.add_argument("--split", default="split")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", default="", help="trials whose name has this in it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="the results file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = options.output or RESULTS / f"structured_search_{options.data}_{options.split}.json"
    records = json.loads(path.read_text())["trials"] if path.exists() else []
    for seed in options.seeds:
        for name in TRIALS:
            done = any((r["trial"], r["seed"]) == (name, seed) for r in records)
            if done or options.only not in name:
                continue
            record = judge(name, options.data, options.split, seed)
            records.append(record)
            settings = {key: value for key, value in asdict(CONFIG).items() if key != "seed"}
            write_json(
                path,
                {
                    "about": __doc__,
                    "data": options.data,
                    "split": options.split,
                    "training": settings,
                    "machine": machine("cpu"),
                    "trials": records,
                },
            )
            scores = ", ".join(f"{value:.2f}" for value in record["example_f1"].values())
            print(f"{name}, seed {seed}: {scores}; {record['seconds']:.0f} s", flush=True)
    summary(records)


if __name__ == "__main__":
    main()
