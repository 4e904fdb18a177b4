"""One L2 penalty per weight of a digit classifier, tuned by hypergradients.

A multinomial logistic regression reads 8 x 8 images of handwritten digits. How strongly should each
of its 640 weights be held back? A grid cannot search 640 penalties; a grid over one penalty for all
of them is what people do instead. Here the validation loss is differentiated with respect to every
penalty, through the training that follows from it, and descended.

    inner(phi, theta) = cross-entropy on the training set + 1/2 sum exp(phi_ij) w_ij^2
    outer(phi, theta) = cross-entropy on the validation set + prior * mean (phi_ij - phi_grid)^2

The prior keeps the 640 penalties near the best single one, so that they do not overfit the
validation set; no image of the test set is looked at before the end.

    python examples/penalty_per_weight.py            # half a minute
    python examples/penalty_per_weight.py --quick    # a few seconds
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

import bilevel

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Theta = dict[str, Tensor]
CLASSES, PIXELS = 10, 64


@dataclass(frozen=True)
class Images:
    """Images ``x [n, 64]`` with pixels in [0, 1], and the digits ``y [n]`` they show."""

    x: Tensor
    y: Tensor

    def loss(self, theta: Theta) -> Tensor:
        """Mean cross-entropy of the classifier."""
        return cross_entropy(self.x @ theta["weight"].T + theta["bias"], self.y)

    def accuracy(self, theta: Theta) -> float:
        """Share of images read correctly."""
        guess = (self.x @ theta["weight"].T + theta["bias"]).argmax(1)
        return (guess == self.y).double().mean().item()


def split_digits(train: int, validation: int, seed: int) -> tuple[Images, Images, Images]:
    """scikit-learn's digits, shuffled: training, validation, and the rest to test."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    x, y = torch.from_numpy(x)[order] / 16, torch.from_numpy(y)[order]
    parts = [train, validation, len(y) - train - validation]
    train_part, validation_part, test_part = map(Images, x.split(parts), y.split(parts))
    return train_part, validation_part, test_part


def make_problem(
    train: Images, validation: Images, center: float = 0.0, prior: float = 0.0
) -> bilevel.ImplicitProblem:
    """The two objectives; ``phi [10, 64]`` holds the logarithm of every weight's penalty."""

    def inner(phi: Tensor, theta: Theta) -> Tensor:
        penalty = 0.5 * (phi.exp() * theta["weight"] ** 2).sum()
        return train.loss(theta) + penalty + 0.5e-4 * (theta["bias"] ** 2).sum()

    def outer(phi: Tensor, theta: Theta) -> Tensor:
        return validation.loss(theta) + prior * ((phi - center) ** 2).mean()

    return bilevel.ImplicitProblem(outer, inner, solver=bilevel.CG())


def search_grid(
    problem: bilevel.ImplicitProblem, validation: Images, log_penalties: Sequence[float]
) -> tuple[float, Theta]:
    """The best single penalty, by validation loss, and the classifier trained with it."""
    theta = {
        "weight": torch.zeros(CLASSES, PIXELS, dtype=torch.float64),
        "bias": torch.zeros(CLASSES, dtype=torch.float64),
    }
    trained: dict[float, Theta] = {}
    for log_penalty in track(log_penalties, "one penalty: grid        "):
        phi = torch.full((CLASSES, PIXELS), log_penalty, dtype=torch.float64)
        theta = problem.refine(phi, theta)
        trained[log_penalty] = theta
    best = min(trained, key=lambda log_penalty: validation.loss(trained[log_penalty]).item())
    return best, trained[best]


@dataclass(frozen=True)
class Tuned:
    """Where descent ended, and the losses on the way."""

    phi: Tensor
    theta: Theta
    validation_losses: list[float]
    test_losses: list[float]


def descend(
    problem: bilevel.ImplicitProblem,
    phi: Tensor,
    theta: Theta,
    validation: Images,
    test: Images,
    steps: int,
    learning_rate: float,
) -> Tuned:
    """Adam on the penalties: train, take the hypergradient, step, again."""
    phi = phi.clone()
    optimizer = torch.optim.Adam([phi], lr=learning_rate)
    adjoint = None
    losses: tuple[list[float], list[float]] = ([], [])
    for _ in track(range(steps), "640 penalties: hypergradients"):
        gradient, info = problem.implicit_grad(phi, theta, initial=adjoint, return_info=True)
        phi.grad, adjoint = gradient, info.adjoint  # the next solve starts where this one ended
        optimizer.step()
        theta = problem.refine(phi, theta)  # train: Newton's method, from where theta is
        for curve, images in zip(losses, (validation, test), strict=True):
            curve.append(images.loss(theta).item())
    return Tuned(phi, theta, *losses)


def check_against_differences(
    problem: bilevel.ImplicitProblem, phi: Tensor, theta: Theta, directions: int, step: float = 1e-3
) -> tuple[float, list[tuple[float, float]]]:
    """The hypergradient along random directions against central differences.

    Each difference trains the classifier twice, to a gradient of 1e-12.

    Returns:
        The relative error over all directions, and the pairs (hypergradient, difference).
    """
    theta = problem.refine(phi, theta, tolerance=1e-12)
    gradient = problem.implicit_grad(phi, theta)
    generator = torch.Generator().manual_seed(0)

    def value(at: Tensor) -> float:
        return problem.outer(at, problem.refine(at, theta, tolerance=1e-12)).item()

    pairs = []
    for _ in track(range(directions), "check: finite differences"):
        along = torch.randn(phi.shape, generator=generator, dtype=phi.dtype)
        along /= along.norm()
        measured = (value(phi + step * along) - value(phi - step * along)) / (2 * step)
        pairs.append(((gradient * along).sum().item(), measured))
    missed = math.hypot(*(g - d for g, d in pairs))
    return missed / math.hypot(*(d for _, d in pairs)), pairs


def draw(path: Path, tuned: Tuned, single: float, grid_losses: tuple[float, float]) -> None:
    """The penalties of every class as an image, and the losses over the steps."""
    figure = plt.figure(figsize=(14, 5), layout="constrained")
    axes = figure.subplots(2, 6, width_ratios=[1] * 5 + [2.2])
    factors = ((tuned.phi - single) / math.log(10)).view(CLASSES, 8, 8).numpy()
    limit = abs(factors).max()
    for digit, axis in enumerate(axes[:, :5].flat):
        image = axis.imshow(factors[digit], cmap="coolwarm", vmin=-limit, vmax=limit)
        axis.set(title=f"digit {digit}", xticks=[], yticks=[])
        if digit == CLASSES - 1:
            label = "log10 (penalty / best single penalty)"
            figure.colorbar(image, ax=axes[:, 4], label=label)
    for axis, name, curve, single in zip(
        axes[:, 5],
        ("validation", "test"),
        (tuned.validation_losses, tuned.test_losses),
        grid_losses,
        strict=True,
    ):
        axis.axhline(single, color="gray", linestyle="--", label="best single penalty")
        axis.plot(range(1, len(curve) + 1), curve, label="one penalty per weight")
        axis.set(ylabel=f"{name} loss")
    axes[0, 5].legend()
    axes[1, 5].set(xlabel="steps on the penalties")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Tune one L2 penalty per weight of a digit classifier by hypergradients.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for results")
    parser.add_argument("--quick", action="store_true", help="fewer images, steps and grid points")
    parser.add_argument("--train", type=int, default=600, help="training images")
    parser.add_argument("--validation", type=int, default=600, help="validation images")
    parser.add_argument("--steps", type=int, default=30, help="steps on the penalties")
    parser.add_argument(
        "--learning-rate", type=float, default=0.15, help="of Adam, on log penalties"
    )
    parser.add_argument("--prior", type=float, default=0.1, help="pull towards the single penalty")
    parser.add_argument("--grid", type=int, default=19, help="points of the grid")
    parser.add_argument("--directions", type=int, default=5, help="directions that are checked")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parsed = parser.parse_args(argv)
    if parsed.quick:
        parsed.train, parsed.validation, parsed.steps = 300, 300, 8
        parsed.grid, parsed.directions = 7, 2
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    """Grid, descent, check, table and picture."""
    options = arguments(argv)
    console = Console()
    torch.set_num_threads(1)  # the matrices are small: threads would mostly wait for each other
    train, validation, test = split_digits(options.train, options.validation, options.seed)
    console.print(
        f"{len(train.y)} images to train on, {len(validation.y)} to validate, {len(test.y)} to "
        f"test; {CLASSES * PIXELS} penalties to tune.\n"
    )
    grid = torch.linspace(-12.0, -3.0, options.grid).tolist()
    single, theta = search_grid(make_problem(train, validation), validation, grid)
    problem = make_problem(train, validation, center=single, prior=options.prior)
    phi = torch.full((CLASSES, PIXELS), single, dtype=torch.float64)
    tuned = descend(problem, phi, theta, validation, test, options.steps, options.learning_rate)
    error, pairs = check_against_differences(problem, tuned.phi, tuned.theta, options.directions)

    rows = {"best single penalty": theta, "one penalty per weight": tuned.theta}
    figures = {
        name: {
            "validation_loss": validation.loss(found).item(),
            "test_loss": test.loss(found).item(),
            "test_accuracy": test.accuracy(found),
        }
        for name, found in rows.items()
    }
    table = Table("", "validation loss", "test loss", "test accuracy", title="\nDigits")
    for name, row in figures.items():
        losses = f"{row['validation_loss']:.4f}", f"{row['test_loss']:.4f}"
        table.add_row(name, *losses, f"{row['test_accuracy']:.2%}")
    console.print(table)
    check = Table("direction", "hypergradient", "central difference", title="\nIs it right?")
    for index, (hypergradient, difference) in enumerate(pairs):
        check.add_row(str(index + 1), f"{hypergradient:+.9e}", f"{difference:+.9e}")
    console.print(check)
    console.print(f"relative error of the hypergradient: {error:.1e}\n")

    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "penalty_per_weight.png"
    single_losses = figures["best single penalty"]
    draw(picture, tuned, single, (single_losses["validation_loss"], single_losses["test_loss"]))
    report = {"single_log_penalty": single, "relative_error": error, "results": figures}
    picture.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"picture: {picture}", soft_wrap=True)


if __name__ == "__main__":
    main()
