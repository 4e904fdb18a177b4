"""Data cleaning: half of the labels are wrong, and one weight per example finds out which.

Every training example i gets a weight sigmoid(phi_i). A classifier is trained on the weighted
examples; its loss on a few clean ones is differentiated with respect to all the weights at once,
through the training.

    inner(phi, theta) = mean_i sigmoid(phi_i) cross-entropy_i(theta) + 1/2 decay ||theta||^2
    outer(phi, theta) = cross-entropy on the clean validation images

``bilevel.BilevelOptimizer`` runs the loop: some steps on theta, one hypergradient, one step on phi.

    python examples/data_cleaning.py            # half a minute
    python examples/data_cleaning.py --quick    # a few seconds

Reference: Franceschi et al., Forward and reverse gradient-based hyperparameter optimization, 2017,
section 5.1 (data hyper-cleaning).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import cross_entropy

import bilevel

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Theta = dict[str, Tensor]


@dataclass(frozen=True)
class Data:
    """Digits in three parts; of the training labels, those in ``corrupted`` are wrong."""

    train_x: Tensor
    train_y: Tensor
    corrupted: Tensor
    validation_x: Tensor
    validation_y: Tensor
    test_x: Tensor
    test_y: Tensor


def corrupted_digits(train: int, validation: int, share: float, seed: int) -> Data:
    """scikit-learn's digits; a share of the training labels is replaced by another digit."""
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=generator)
    x, y = torch.from_numpy(pixels)[order] / 16, torch.from_numpy(labels)[order]
    sizes = [train, validation, len(y) - train - validation]
    (train_x, validation_x, test_x), (train_y, validation_y, test_y) = (
        x.split(sizes),
        y.split(sizes),
    )
    corrupted = torch.zeros(train, dtype=torch.bool)
    corrupted[torch.randperm(train, generator=generator)[: round(share * train)]] = True
    shift = torch.randint(1, 10, (train,), generator=generator)
    train_y = torch.where(corrupted, (train_y + shift) % 10, train_y)
    return Data(train_x, train_y, corrupted, validation_x, validation_y, test_x, test_y)


def logits(theta: Theta, x: Tensor) -> Tensor:
    """A linear classifier."""
    return x @ theta["weight"].T + theta["bias"]


def start(requires_grad: bool = False) -> Theta:
    """A classifier that knows nothing."""
    theta = {"weight": torch.zeros(10, 64).double(), "bias": torch.zeros(10).double()}
    return {name: leaf.requires_grad_(requires_grad) for name, leaf in theta.items()}


def make_problem(data: Data, decay: float) -> bilevel.ImplicitProblem:
    """The two objectives; ``phi [n]`` holds the logit of every example's weight."""

    def inner(phi: Tensor, theta: Theta) -> Tensor:
        losses = cross_entropy(logits(theta, data.train_x), data.train_y, reduction="none")
        penalty = (theta["weight"] ** 2).sum() + (theta["bias"] ** 2).sum()
        return (phi.sigmoid() * losses).mean() + 0.5 * decay * penalty

    def outer(phi: Tensor, theta: Theta) -> Tensor:
        return cross_entropy(logits(theta, data.validation_x), data.validation_y)

    return bilevel.ImplicitProblem(outer, inner, solver=bilevel.CG(rtol=1e-4))


@dataclass(frozen=True)
class Cleaned:
    """The learnt logits, the classifier trained under them, and the validation losses seen."""

    phi: Tensor
    theta: Theta
    losses: list[float]


def clean(
    problem: bilevel.ImplicitProblem, examples: int, steps: int, inner_steps: int, rate: float
) -> Cleaned:
    """Learn one weight per example with the loop that the library brings."""
    phi = torch.zeros(examples, dtype=torch.float64, requires_grad=True)
    theta = start(requires_grad=True)
    loop = bilevel.BilevelOptimizer(
        problem,
        outer_optimizer=torch.optim.Adam([phi], lr=rate),
        inner_optimizer=torch.optim.SGD(theta.values(), lr=0.5, momentum=0.9),
        phi=phi,
        theta=theta,
        inner_steps=inner_steps,
    )
    losses = [loop.step().outer_value for _ in track(range(steps), "one weight per example")]
    learnt = phi.detach()
    return Cleaned(learnt, problem.refine(learnt, theta), losses)


def draw(path: Path, data: Data, cleaned: Cleaned) -> None:
    """Histograms of the learnt weights, and the validation loss over the steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    weights = cleaned.phi.sigmoid()
    parts = [weights[~data.corrupted].numpy(), weights[data.corrupted].numpy()]
    left.hist(parts, bins=25, range=(0, 1), label=["label is right", "label is wrong"])
    left.set(xlabel="learnt weight of the example", ylabel="examples")
    left.legend()
    right.plot(cleaned.losses)
    right.set(xlabel="steps on the weights", ylabel="validation loss")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Find corrupted labels by learning one weight per training example.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for results")
    parser.add_argument("--quick", action="store_true", help="fewer images and steps")
    parser.add_argument("--train", type=int, default=1000, help="training images")
    parser.add_argument("--validation", type=int, default=100, help="clean validation images")
    parser.add_argument("--corrupt", type=float, default=0.5, help="share of wrong training labels")
    parser.add_argument("--steps", type=int, default=100, help="steps on the weights")
    parser.add_argument("--inner-steps", type=int, default=20, help="steps on theta in each")
    parser.add_argument("--learning-rate", type=float, default=0.2, help="of Adam, on the weights")
    parser.add_argument("--decay", type=float, default=1e-3, help="L2 penalty of the classifier")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the corruption")
    parsed = parser.parse_args(argv)
    if parsed.quick:
        parsed.train, parsed.steps = 400, 40
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    """Corrupt, clean, compare, draw."""
    options = arguments(argv)
    console = Console()
    torch.set_num_threads(1)  # the matrices are small: threads would mostly wait for each other
    data = corrupted_digits(options.train, options.validation, options.corrupt, options.seed)
    console.print(
        f"{options.train} training images, {int(data.corrupted.sum())} of them with a wrong label; "
        f"{options.validation} clean images to validate on; {len(data.test_y)} to test.\n"
    )
    problem = make_problem(data, options.decay)
    cleaned = clean(
        problem, options.train, options.steps, options.inner_steps, options.learning_rate
    )
    auc = float(roc_auc_score(data.corrupted.numpy(), -cleaned.phi.numpy()))

    everything = torch.full_like(cleaned.phi, 40.0)  # sigmoid(40) is 1 to the last digit
    right_ones = torch.where(data.corrupted, -40.0, 40.0).double()
    validated = replace(data, train_x=data.validation_x, train_y=data.validation_y)
    certain = torch.full((options.validation,), 40.0, dtype=torch.float64)
    classifiers = {
        "no cleaning": problem.refine(everything, start()),
        "the clean validation images": make_problem(validated, options.decay).refine(
            certain, start()
        ),
        "learnt weights": cleaned.theta,
        "oracle: right labels only": problem.refine(right_ones, start()),
    }
    table = Table("trained with", "validation loss", "test loss", "test accuracy", title="\nDigits")
    figures = {}
    for name, theta in classifiers.items():
        scores = logits(theta, data.test_x)
        loss = cross_entropy(scores, data.test_y).item()
        accuracy = (scores.argmax(1) == data.test_y).double().mean().item()
        validation = problem.outer(cleaned.phi, theta).item()
        figures[name] = {
            "validation_loss": validation,
            "test_loss": loss,
            "test_accuracy": accuracy,
        }
        table.add_row(name, f"{validation:.4f}", f"{loss:.4f}", f"{accuracy:.2%}")
    console.print(table)
    console.print(
        f"\nof a wrong and a right label, the wrong one has the smaller weight in {auc:.2%} of all "
        "pairs (area under the ROC curve)\n"
    )

    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "data_cleaning.png"
    draw(picture, data, cleaned)
    report = {"auc": auc, "results": figures}
    picture.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"picture: {picture}", soft_wrap=True)


if __name__ == "__main__":
    main()
