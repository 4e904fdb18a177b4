"""A layer that is the solution of an equation: z = tanh(W z + U x + b), on handwritten digits.

Iterating the equation is like a network of endless depth with shared weights. To train it, autograd
through the iterations keeps every one of them in memory; the implicit function theorem needs the
fixed point alone, and one linear solve with (I - dT/dz)' for the backward pass. The same classifier
is trained four times, the backward pass being

    unrolled     autograd through the iterations
    GMRES        bilevel.fixed_point(..., solver=bilevel.GMRES())
    Neumann      bilevel.fixed_point(..., solver=bilevel.Neumann(terms, step=1.0))
    one step     bilevel.fixed_point(..., solver=bilevel.ScaledIdentity(1.0)): no solve at all

    python examples/fixed_point_layer.py            # half a minute
    python examples/fixed_point_layer.py --quick    # a few seconds

Reference: Bai, Kolter and Koltun, Deep equilibrium models, 2019.
"""

from __future__ import annotations

import argparse
import json
import time
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

Layer = dict[str, Tensor]
_MOST_ITERATIONS = 200


def step(layer: Layer, z: Tensor, x: Tensor) -> Tensor:
    """The map whose fixed point the layer is: ``z [n, width]``, ``x [n, 64]``."""
    return torch.tanh(z @ layer["recurrent"].T + x @ layer["input"].T + layer["bias"])


def iterate(layer: Layer, x: Tensor, tolerance: float) -> Tensor:
    """Apply the map until it moves z by less than the tolerance, relative to z."""
    z = x.new_zeros(len(x), len(layer["bias"]))
    for _ in range(_MOST_ITERATIONS):
        z, before = step(layer, z, x), z
        if bool(torch.linalg.vector_norm((z - before).detach()) <= tolerance * z.detach().norm()):
            break
    return z


class Classifier(torch.nn.Module):
    """The fixed point of a contraction, and a linear readout.

    Args:
        width: of the layer.
        solver: of the backward pass; None backpropagates through the iterations instead.
    """

    def __init__(self, width: int, solver: bilevel.Solver | None) -> None:
        super().__init__()
        self.solver = solver
        self.recurrent = torch.nn.Parameter(torch.randn(width, width) / width**0.5)
        self.input = torch.nn.Linear(64, width)
        self.readout = torch.nn.Linear(width, 10)

    def layer(self) -> Layer:
        """The map's parameters, W scaled to a norm of 0.9 at most: a contraction."""
        norm = torch.linalg.matrix_norm(self.recurrent, ord=2)
        recurrent = self.recurrent * (0.9 / norm.clamp_min(0.9))
        return {"recurrent": recurrent, "input": self.input.weight, "bias": self.input.bias}

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[n, 10]``."""
        layer = self.layer()
        tolerance = 10 * torch.finfo(x.dtype).eps
        if self.solver is None:
            return self.readout(iterate(layer, x, tolerance))
        with torch.no_grad():
            z = iterate(layer, x, tolerance)
        return self.readout(bilevel.fixed_point(step, layer, z, args=(x,), solver=self.solver))


@dataclass(frozen=True)
class Outcome:
    """What one way through the backward pass costs, and what it gives."""

    milliseconds: float
    kept_mebibytes: float
    gradient_error: float
    test_accuracy: float
    losses: list[float]


def kept_for_backward(model: Classifier, x: Tensor, y: Tensor) -> float:
    """MiB that the forward pass keeps alive until the backward pass, parameters left out."""
    kept = {}
    parameters = {leaf.untyped_storage().data_ptr() for leaf in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy(model(x), y)
    loss.backward()
    model.zero_grad()
    return sum(kept.values()) / 2**20


def gradient(model: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the loss in all parameters, flat, in double precision."""
    found = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    return torch.cat([leaf.flatten() for leaf in found]).double()


def train(
    solver: bilevel.Solver | None, name: str, data: tuple[Tensor, ...], width: int, epochs: int
) -> Outcome:
    """Train one classifier; every way starts from the same weights and sees the same batches."""
    train_x, train_y, test_x, test_y = data
    torch.manual_seed(0)
    model = Classifier(width, solver)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses, seconds = [], 0.0
    for _ in track(range(epochs), f"{name:10}"):
        for batch in torch.randperm(len(train_x)).split(128):
            begin = time.perf_counter()
            optimizer.zero_grad()
            loss = cross_entropy(model(train_x[batch]), train_y[batch])
            loss.backward()
            optimizer.step()
            seconds += time.perf_counter() - begin
            losses.append(loss.item())
    x, y = train_x[:128].clone(), train_y[:128]  # a slice would keep all images
    kept = kept_for_backward(model, x, y)
    found = gradient(model, x, y)
    # The yardstick: the same weights in double precision, solved to 1e-12.
    exact = Classifier(width, bilevel.GMRES(rtol=1e-12)).double()
    exact.load_state_dict(model.state_dict())
    wanted = gradient(exact, x.double(), y)
    with torch.no_grad():
        accuracy = (model(test_x).argmax(1) == test_y).double().mean().item()
    error = ((found - wanted).norm() / wanted.norm()).item()
    return Outcome(1000 * seconds / len(losses), kept, error, accuracy, losses)


def check(solver: bilevel.Solver) -> bool:
    """``torch.autograd.gradcheck`` of a small layer in double precision."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64)
    shapes = {"recurrent": (5, 5), "input": (5, 4), "bias": (5,)}
    leaves = [0.2 * torch.randn(s, dtype=torch.float64) for s in shapes.values()]

    def layer(*leaves: Tensor) -> Tensor:
        phi = dict(zip(shapes, leaves, strict=True))
        with torch.no_grad():
            z = iterate(phi, x, 1e-14)
        return bilevel.fixed_point(step, phi, z, args=(x,), solver=solver)

    return torch.autograd.gradcheck(layer, [leaf.requires_grad_() for leaf in leaves])


def draw(path: Path, outcomes: dict[str, Outcome]) -> None:
    """The training losses, and what each way keeps in memory."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, outcome in outcomes.items():
        left.plot(outcome.losses, label=name, alpha=0.8)
    left.set(xlabel="training steps", ylabel="training loss", yscale="log")
    left.legend()
    right.bar(list(outcomes), [outcome.kept_mebibytes for outcome in outcomes.values()])
    right.set(ylabel="MiB kept for the backward pass")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train a fixed-point layer by implicit differentiation.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for results")
    parser.add_argument("--quick", action="store_true", help="fewer epochs, a narrower layer")
    parser.add_argument("--width", type=int, default=64, help="of the layer")
    parser.add_argument("--epochs", type=int, default=12, help="of 10 batches of 128 images each")
    parser.add_argument("--terms", type=int, default=30, help="of the Neumann series")
    parsed = parser.parse_args(argv)
    if parsed.quick:
        parsed.width, parsed.epochs = 32, 3
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    """Check, train, compare, draw."""
    options = arguments(argv)
    console = Console()
    torch.set_num_threads(1)  # the matrices are small: threads would mostly wait for each other
    for solver in (bilevel.GMRES(rtol=1e-12), bilevel.Neumann(terms=200, step=1.0)):
        console.print(f"gradcheck with {type(solver).__name__}: {check(solver)}")

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels)
    data = (x[:1280], y[:1280], x[1280:], y[1280:])
    solvers = {
        "unrolled": None,
        "GMRES": bilevel.GMRES(),
        "Neumann": bilevel.Neumann(options.terms, step=1.0),
        "one step": bilevel.ScaledIdentity(1.0),
    }
    outcomes = {
        name: train(solver, name, data, options.width, options.epochs)
        for name, solver in solvers.items()
    }
    columns = "ms a step", "MiB kept", "error of the gradient", "test accuracy"
    table = Table("backward pass", *columns, title="\nDigits")
    for name, outcome in outcomes.items():
        table.add_row(
            name,
            f"{outcome.milliseconds:.1f}",
            f"{outcome.kept_mebibytes:.2f}",
            f"{outcome.gradient_error:.0e}",
            f"{outcome.test_accuracy:.2%}",
        )
    console.print(table)

    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "fixed_point_layer.png"
    draw(picture, outcomes)
    report = {
        name: {key: value for key, value in vars(outcome).items() if key != "losses"}
        for name, outcome in outcomes.items()
    }
    picture.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"\npicture: {picture}", soft_wrap=True)


if __name__ == "__main__":
    main()
