"""Proximal meta-learning: where should training start, so that ten examples are enough?

Each task is a sine wave of another amplitude and phase, seen at ten points. A small network adapts
its last layer to them, held near a shared starting point phi by a proximal term:

    inner(phi, theta) = mean (features(phi, x) @ theta - y)^2 + 1/2 lam ||theta - phi.head||^2
    outer(phi, theta) = the same error at ten other points of the task

The gradient of the adapted error in phi is that of an implicit function. For the starting point it
has a closed form, ``(I + H / lam)^-1 grad outer`` with H the Hessian of the task's loss, which is
checked; for the features it has none. ``bilevel.argmin`` attaches the derivative to the adapted
weights, and ``torch.func.vmap`` runs over the tasks of a batch.

    python examples/proximal_meta_learning.py            # half a minute
    python examples/proximal_meta_learning.py --quick    # a few seconds

Reference: Rajeswaran et al., Meta-learning with implicit gradients, 2019, equations 3 and 7.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.func import vmap

import bilevel

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Phi = dict[str, Tensor]
SHOTS = 10


@dataclass(frozen=True)
class Tasks:
    """Points ``x [tasks, 2 SHOTS, 1]``, values ``y [tasks, 2 SHOTS]``; half to adapt on."""

    x: Tensor
    y: Tensor

    @staticmethod
    def draw(count: int, generator: torch.Generator) -> Tasks:
        """Sine waves with amplitudes in [0.1, 5] and any phase, at points in [-5, 5]."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(count, *shape, generator=generator, dtype=torch.float64)

        amplitude, phase = 0.1 + 4.9 * uniform(1), math.pi * uniform(1)
        x = 10 * uniform(2 * SHOTS, 1) - 5
        return Tasks(x, amplitude * torch.sin(x.squeeze(-1) - phase))


def initial(width: int, seed: int) -> Phi:
    """Two layers of features at random, and a head of zeros to start from."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "weight1": 3 * normal(width, 1),
        "bias1": normal(width),
        "weight2": normal(width, width) / math.sqrt(width),
        "bias2": torch.zeros(width, dtype=torch.float64),
        "head": torch.zeros(width + 1, dtype=torch.float64),
    }


def features(phi: Phi, x: Tensor) -> Tensor:
    """``[n, 1]`` to ``[n, width + 1]``; the last is 1."""
    hidden = torch.tanh(x / 5 @ phi["weight1"].T + phi["bias1"])
    hidden = torch.tanh(hidden @ phi["weight2"].T + phi["bias2"])
    return torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)


def error(phi: Phi, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of a head theta."""
    return ((features(phi, x) @ theta - y) ** 2).mean()


@dataclass(frozen=True)
class Learner:
    """Adapts to a task from a shared start; ``lam`` says how near it stays."""

    lam: float

    def inner(self, phi: Phi, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """What adaptation minimises."""
        return error(phi, theta, x, y) + 0.5 * self.lam * ((theta - phi["head"]) ** 2).sum()

    def adapt(self, phi: Phi, x: Tensor, y: Tensor) -> Tensor:
        """The minimiser: here a linear system; any optimizer would do."""
        z = features(phi, x)
        matrix = 2 / len(y) * z.T @ z + self.lam * torch.eye(z.shape[1], dtype=z.dtype)
        return torch.linalg.solve(matrix, 2 / len(y) * z.T @ y + self.lam * phi["head"])

    def adapted_error(self, phi: Phi, x: Tensor, y: Tensor) -> Tensor:
        """The error after adaptation, a differentiable function of phi."""
        with torch.no_grad():
            theta = self.adapt(phi, x[:SHOTS], y[:SHOTS])
        theta = bilevel.argmin(self.inner, phi, theta, args=(x[:SHOTS], y[:SHOTS]))
        return error(phi, theta, x[SHOTS:], y[SHOTS:])

    def evaluate(self, phi: Phi, tasks: Tasks) -> float:
        """Mean error after adaptation."""
        with torch.no_grad():
            thetas = vmap(self.adapt, (None, 0, 0))(phi, tasks.x[:, :SHOTS], tasks.y[:, :SHOTS])
            errors = vmap(error, (None, 0, 0, 0))(
                phi, thetas, tasks.x[:, SHOTS:], tasks.y[:, SHOTS:]
            )
        return errors.mean().item()


def descend(
    phi: Phi, objective: Callable[[Phi, Tasks], Tensor], steps: int, batch: int, name: str
) -> Phi:
    """Adam on the mean of an objective over fresh tasks."""
    phi = {key: leaf.clone().requires_grad_() for key, leaf in phi.items()}
    optimizer = torch.optim.Adam(phi.values(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in track(range(steps), name):
        optimizer.zero_grad()
        objective(phi, Tasks.draw(batch, generator)).backward()
        optimizer.step()
    return {key: leaf.detach() for key, leaf in phi.items()}


def check(learner: Learner, phi: Phi, tasks: Tasks) -> dict[str, float]:
    """Relative errors of one hypergradient against two other ways to compute it."""
    x, y = tasks.x[0], tasks.y[0]
    theta = learner.adapt(phi, x[:SHOTS], y[:SHOTS])
    found = bilevel.implicit_grad(
        lambda phi, theta: error(phi, theta, x[SHOTS:], y[SHOTS:]),
        learner.inner,
        phi,
        theta,
        inner_args=(x[:SHOTS], y[:SHOTS]),
    )
    hessian = bilevel.hessian(lambda head: error(phi, head, x[:SHOTS], y[:SHOTS]), theta).to_dense()
    slope = torch.func.grad(error, argnums=1)(phi, theta, x[SHOTS:], y[SHOTS:])
    closed = torch.linalg.solve(torch.eye(len(theta)).double() + hessian / learner.lam, slope)

    def through_the_solver(phi: Phi) -> Tensor:
        return error(phi, learner.adapt(phi, x[:SHOTS], y[:SHOTS]), x[SHOTS:], y[SHOTS:])

    unrolled = torch.func.grad(through_the_solver)(phi)
    missed = sum(((found[key] - unrolled[key]) ** 2).sum() for key in phi)
    size = sum((unrolled[key] ** 2).sum() for key in phi)
    return {
        "(I + H / lam)^-1 grad outer, for the start": (
            (found["head"] - closed).norm() / closed.norm()
        ).item(),
        "autograd through the adaptation, for all of phi": math.sqrt(float(missed / size)),
    }


def draw(path: Path, learner: Learner, starts: dict[str, Phi], tasks: Tasks) -> None:
    """What each start makes of the ten points of three tasks."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    grid = torch.linspace(-5, 5, 200, dtype=torch.float64).unsqueeze(1)
    for task, axis in enumerate(axes):
        x, y = tasks.x[task], tasks.y[task]
        for name, phi in starts.items():
            curve = features(phi, grid) @ learner.adapt(phi, x[:SHOTS], y[:SHOTS])
            axis.plot(grid.squeeze(1).numpy(), curve.numpy(), label=name)
        axis.scatter(x[:SHOTS, 0].numpy(), y[:SHOTS].numpy(), color="black", label="to adapt on")
        axis.scatter(
            x[SHOTS:, 0].numpy(), y[SHOTS:].numpy(), color="black", marker="x", label="to judge by"
        )
        axis.set(title=f"new task {task + 1}", ylim=(-6, 6))
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Learn features and a starting point from which ten examples are enough.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for results")
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--steps", type=int, default=400, help="steps on phi")
    parser.add_argument("--batch", type=int, default=16, help="tasks a step")
    parser.add_argument("--lam", type=float, default=0.1, help="strength of the proximal term")
    parser.add_argument("--width", type=int, default=40, help="features")
    parser.add_argument("--seed", type=int, default=0, help="of the initial features")
    parsed = parser.parse_args(argv)
    if parsed.quick:
        parsed.steps = 60
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    """Learn, compare on new tasks, check, draw."""
    options = arguments(argv)
    console = Console()
    torch.set_num_threads(1)  # the matrices are small: threads would mostly wait for each other
    learner = Learner(options.lam)
    new_tasks = Tasks.draw(500, torch.Generator().manual_seed(2))
    begin = initial(options.width, options.seed)

    def adapted(phi: Phi, tasks: Tasks) -> Tensor:
        return vmap(learner.adapted_error, (None, 0, 0))(phi, tasks.x, tasks.y).mean()

    def joint(phi: Phi, tasks: Tasks) -> Tensor:
        return error(phi, phi["head"], tasks.x.flatten(0, 1), tasks.y.flatten())

    pooled = descend(begin, joint, options.steps, options.batch, "all tasks pooled")
    learnt = descend(begin, adapted, options.steps, options.batch, "meta-learning   ")
    starts = {"no meta-learning": begin, "all tasks pooled": pooled, "meta-learnt": learnt}
    errors = {name: learner.evaluate(phi, new_tasks) for name, phi in starts.items()}
    table = Table("start", "squared error", title=f"\n500 new tasks, {SHOTS} examples each")
    for name, value in errors.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)

    differences = check(learner, learnt, new_tasks)
    against = Table("the hypergradient against", "relative error", title="\nIs it right?")
    for name, value in differences.items():
        against.add_row(name, f"{value:.1e}")
    console.print(against)

    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "proximal_meta_learning.png"
    draw(picture, learner, starts, new_tasks)
    report = {"squared_error": errors, "relative_error": list(differences.values())}
    picture.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"\npicture: {picture}", soft_wrap=True)


if __name__ == "__main__":
    main()
