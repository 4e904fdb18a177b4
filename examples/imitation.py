"""Imitation of a controller whose actions are bounded: learn what it minimises, not what it does.

A vehicle in the plane has three thrusters, which push between nothing and full, ``a [3]`` in
[0, 1]. Its controller weighs the thrust against the cost to go of a linear-quadratic regulator,

    a*(s) = argmin over the box of 1/2 a'R a + 1/2 (A s + B a)'P (A s + B a),

a quadratic program for every state s. A learner sees states and actions alone. It fits an energy
that is linear in the state and quadratic in the action, ``-<W s + w, a> + 1/2 ||F'a||^2``, with the
squared norm for a regularizer, by a generalized Fenchel-Young loss. The controller's own energy is
among those, so that a loss of zero is within reach, and there the prediction is the controller's
action, for all states and not only near those seen. Two regressions with the squared loss see the
same demonstrations: a linear one, clipped to the box, and a network.

    python examples/imitation.py            # ten seconds
    python examples/imitation.py --quick    # a few seconds

Reference: Blondel et al., Learning energy networks with generalized Fenchel-Young losses, 2022.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.linalg import solve_discrete_are
from scipy.optimize import lsq_linear, minimize
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from structured.fenchel_young import (
    GeneralizedFenchelYoung,
    PairwiseCoupling,
    SquaredNorm,
    coordinate_ascent,
)
from structured.networks import MLP
from structured.spaces import Labels

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Policy = Callable[[Tensor], Tensor]
THRUSTERS = 3
TOLERANCE = 1e-8  # how far from its minimum an inner problem may end


@dataclass(frozen=True)
class Controller:
    """The expert: dynamics ``s' = A s + B a``, and the quadratic it minimises over actions."""

    a: Tensor
    b: Tensor
    cost: Tensor
    effort: float
    to_go: Tensor

    @staticmethod
    def make(step: float = 0.2, effort: float = 0.1) -> Controller:
        """Positions and velocities in the plane; thrusters a third of a turn apart."""
        angles = math.pi / 2 + 2 * math.pi / 3 * np.arange(THRUSTERS)
        forces = np.stack([np.cos(angles), np.sin(angles)])
        a = np.block([[np.eye(2), step * np.eye(2)], [np.zeros((2, 2)), np.eye(2)]])
        b = np.concatenate([0.5 * step**2 * forces, step * forces])
        cost = np.diag([1.0, 1.0, 0.1, 0.1])
        to_go = solve_discrete_are(a, b, cost, effort * np.eye(THRUSTERS))
        a, b, cost, to_go = (torch.from_numpy(matrix) for matrix in (a, b, cost, to_go))
        return Controller(a, b, cost, effort, to_go)

    @property
    def quadratic(self) -> tuple[Tensor, Tensor]:
        """H and G of ``1/2 a'H a - <G s, a>``, which is what the action minimises."""
        curvature = self.b.T @ self.to_go @ self.b + self.effort * torch.eye(THRUSTERS).double()
        return curvature, -self.b.T @ self.to_go @ self.a

    def act(self, states: Tensor) -> Tensor:
        """The best actions ``[n, 3]`` in states ``[n, 4]``, by SciPy's bounded least squares."""
        curvature, gain = self.quadratic
        root = torch.linalg.cholesky(curvature).T
        targets = torch.linalg.solve_triangular(root.T, gain @ states.T, upper=False).T
        rows = [
            lsq_linear(root.numpy(), target.numpy(), bounds=(0, 1), method="bvls", tol=1e-14).x
            for target in targets
        ]
        return torch.from_numpy(np.stack(rows))

    def spent(self, policy: Policy, states: Tensor, steps: int) -> tuple[float, Tensor]:
        """The mean cost of driving on from states ``[n, 4]``, and where that leads."""
        total, path = states.new_zeros(()), [states]
        for _ in range(steps):
            actions = policy(states)
            total = total + ((states @ self.cost) * states).sum() + self.effort * (actions**2).sum()
            states = states @ self.a.T + actions @ self.b.T
            path.append(states)
        return total.item() / len(states), torch.stack(path)


def draw_states(count: int, generator: torch.Generator) -> Tensor:
    """Positions and velocities, normally distributed."""
    spread = torch.tensor([2.0, 2.0, 1.0, 1.0]).double()
    return spread * torch.randn(count, 4, generator=generator, dtype=torch.float64)


class Imitator(nn.Module):
    """The learned energy ``-<W s + w, a> + 1/2 ||F'a||^2``, and its regularized minimiser."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.local = nn.Linear(4, THRUSTERS).double()
            self.coupling = PairwiseCoupling(THRUSTERS, rank=THRUSTERS).double()
        self.criterion = GeneralizedFenchelYoung(
            Labels(THRUSTERS), SquaredNorm(), tolerance=TOLERANCE
        )

    def energy(self, states: Tensor) -> Callable[[Tensor], Tensor]:
        """E as a function of actions ``[..., n, 3]``."""
        slopes = self.local(states)
        return lambda p: self.coupling(states, p) - (slopes * p).sum(dim=-1)

    def forward(self, states: Tensor) -> Tensor:
        """The actions ``[n, 3]``; refused if the gap says that they are not the minimisers."""
        slopes = self.local(states).detach()
        start = torch.zeros_like(slopes)
        found = coordinate_ascent(slopes, self.coupling.factors.detach(), start, sweeps=60)
        return self.criterion.certify(self.energy(states), found).point

    def loss(self, states: Tensor, actions: Tensor) -> Tensor:
        """The mean generalized Fenchel-Young loss."""
        return self.criterion(self.energy(states), actions, self(states)).mean()

    def as_quadratic(self) -> Tensor:
        """H, G and the constant of the linear term, side by side, scaled to a norm of one."""
        factors = self.coupling.factors.detach()
        curvature = factors @ factors.T + torch.eye(THRUSTERS).double()
        parts = [curvature, self.local.weight.detach(), self.local.bias.detach()[:, None]]
        whole = torch.cat(parts, dim=1)
        return whole / whole.norm()


def descend(model: nn.Module, loss: Callable[[], Tensor], steps: int, name: str) -> list[float]:
    """SciPy's L-BFGS, until the steps are done or the loss falls no more; the losses."""
    leaves, losses = list(model.parameters()), []

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        vector_to_parameters(torch.from_numpy(flat), leaves)
        value = loss()
        gradients = torch.autograd.grad(value, leaves)
        losses.append(value.item())
        return losses[-1], torch.cat([leaf.flatten() for leaf in gradients]).numpy()

    begin = parameters_to_vector(leaves).detach().numpy()
    options = {"maxiter": steps, "maxcor": 20, "ftol": 0.0, "gtol": 0.0}
    with Progress() as bar:
        task = bar.add_task(name, total=steps)
        found = minimize(
            evaluate, begin, jac=True, method="L-BFGS-B", options=options,
            callback=lambda _: bar.advance(task),
        )  # fmt: skip
        bar.update(task, completed=steps)
    vector_to_parameters(torch.from_numpy(found.x), leaves)
    return losses


def regress_linearly(states: Tensor, actions: Tensor) -> Policy:
    """Least squares on states and a constant, clipped to the box."""

    def inputs(states: Tensor) -> Tensor:
        return torch.cat([states, torch.ones_like(states[:, :1])], dim=1)

    weights = torch.linalg.lstsq(inputs(states), actions).solution
    return lambda states: (inputs(states) @ weights).clamp(0.0, 1.0)


def regress_with_a_network(states: Tensor, actions: Tensor, steps: int, seed: int) -> Policy:
    """The squared loss of a network of one hidden layer, clipped to the box."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MLP(4, THRUSTERS, (64,), activation=torch.tanh).double()
    descend(network, lambda: ((network(states) - actions) ** 2).mean(), steps, "network   ")
    return lambda states: network(states).detach().clamp(0.0, 1.0)


def gradient_error(imitator: Imitator, states: Tensor, actions: Tensor) -> float:
    """How far the loss's gradient is from central differences of a loss that SciPy solves."""

    def exact() -> float:
        """E(y) - min E by bounded least squares, without the library's inference."""
        factors = imitator.coupling.factors.detach()
        curvature = factors @ factors.T + torch.eye(THRUSTERS).double()
        root = torch.linalg.cholesky(curvature).T
        total = 0.0
        for slope, action in zip(imitator.local(states).detach(), actions, strict=True):
            target = torch.linalg.solve_triangular(root.T, slope[:, None], upper=False)[:, 0]
            best = lsq_linear(root.numpy(), target.numpy(), bounds=(0, 1), method="bvls", tol=1e-14)
            at_gold = 0.5 * action @ curvature @ action - slope @ action
            total += float(at_gold + 0.5 * target @ target) - best.cost
        return total / len(states)

    leaves = list(imitator.parameters())
    gradients = torch.autograd.grad(imitator.loss(states, actions), leaves)
    generator = torch.Generator().manual_seed(5)
    worst = 0.0
    for _ in range(3):
        directions = [torch.randn(leaf.shape, generator=generator).double() for leaf in leaves]
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
        values = []
        for step in (1e-4, -2e-4, 1e-4):
            with torch.no_grad():
                for leaf, direction in zip(leaves, directions, strict=True):
                    leaf.add_(step * direction)
            values.append(exact())
        difference = (values[0] - values[1]) / 2e-4
        worst = max(worst, abs(slope - difference) / abs(difference))
    return worst


def draw(path: Path, controller: Controller, policies: dict[str, Policy], far: Tensor) -> None:
    """One thruster along a line of states, and three drives."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    line = torch.linspace(-5, 5, 200).double()
    states = torch.stack([line, 0.3 * line, torch.zeros(200), torch.full((200,), 0.4)], dim=1)
    looks = ({"color": "black", "linestyle": "--", "zorder": 3}, *({} for _ in policies))
    for color, ((name, policy), look) in enumerate(zip(policies.items(), looks, strict=False)):
        style = {"color": f"C{color}", "label": name, **look}
        left.plot(line.numpy(), policy(states.double())[:, 1].numpy(), **style)
        _, driven = controller.spent(policy, far[:3], 60)
        for drive in driven.unbind(dim=1):
            right.plot(drive[:, 0].numpy(), drive[:, 1].numpy(), **style)
            style.pop("label", None)
    left.set(xlabel="position", ylabel="second thruster")
    left.legend(fontsize="small")
    right.set(xlabel="x", ylabel="y", title="three drives")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Clone a controller with bounded actions by a generalized Fenchel-Young loss.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder for results")
    parser.add_argument("--quick", action="store_true", help="fewer steps and states")
    parser.add_argument("--demonstrations", type=int, default=200, help="states seen with actions")
    parser.add_argument(
        "--steps", type=int, default=300, help="the most of L-BFGS, for every learner"
    )
    parser.add_argument("--states", type=int, default=1000, help="new ones to judge by")
    parser.add_argument("--seed", type=int, default=0, help="of states and initial weights")
    parsed = parser.parse_args(argv)
    if parsed.quick:
        parsed.steps, parsed.states = 150, 200
    return parsed


def main(argv: Sequence[str] | None = None) -> None:
    """Watch, learn, compare on new states and on the road, draw."""
    options = arguments(argv)
    console = Console()
    torch.set_num_threads(1)  # the matrices are small: threads would mostly wait for each other
    controller = Controller.make()
    generator = torch.Generator().manual_seed(options.seed)
    states = draw_states(options.demonstrations, generator)
    new, far = draw_states(options.states, generator), 2.0 * draw_states(20, generator)
    actions, wanted = controller.act(states), controller.act(new)

    imitator = Imitator(options.seed)
    error = gradient_error(imitator, states[:20], actions[:20])
    losses = descend(
        imitator, lambda: imitator.loss(states, actions), options.steps, "Fenchel-Young"
    )
    policies: dict[str, Policy] = {
        "the controller": controller.act,
        "Fenchel-Young loss": imitator.forward,
        "squared loss, linear": regress_linearly(states, actions),
        "squared loss, network": regress_with_a_network(
            states, actions, options.steps, options.seed
        ),
    }
    results = {}
    least, _ = controller.spent(controller.act, far, 60)
    for name, policy in policies.items():
        off = (policy(new) - wanted).abs()
        cost, _ = controller.spent(policy, far, 60)
        results[name] = {
            "mean_error": off.mean().item(),
            "largest_error": off.max().item(),
            "excess_cost": cost / least - 1.0,
        }
    title = f"\n{options.demonstrations} demonstrations; {options.states} new states, 20 drives"
    table = Table("policy", "error of an action", "largest", "cost of a drive", title=title)
    for name, row in results.items():
        table.add_row(
            name, f"{row['mean_error']:.1e}", f"{row['largest_error']:.1e}",
            f"{round(100 * row['excess_cost'], 3) + 0.0:+.3f}%",
        )  # fmt: skip
    console.print(table)

    curvature, gain = controller.quadratic
    own = torch.cat([curvature, gain, torch.zeros(THRUSTERS, 1).double()], dim=1)
    difference = (imitator.as_quadratic() - own / own.norm()).norm().item()
    console.print(f"\nloss: {losses[0]:.1e} at first, {losses[-1]:.1e} at last")
    console.print(f"relative error of its gradient against central differences: {error:.1e}")
    console.print(f"the learned quadratic is the controller's, up to scale, to {difference:.1e}")

    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "imitation.png"
    draw(picture, controller, policies, far)
    report = {
        "results": results,
        "loss": losses[-1],
        "gradient_error": error,
        "quadratic_error": difference,
    }
    picture.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"\npicture: {picture}", soft_wrap=True)


if __name__ == "__main__":
    main()
