"""End-to-end training of structured prediction energy networks: through inference itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor
from torch.func import functional_call

import bilevel
from structured.methods._gradient_inference import (
    Descent,
    Geometry,
    build_with_global_term,
    energy_slope,
    joint_energy,
)
from structured.methods._optimizer import check_choice, check_count, check_rate
from structured.methods._parts import check_part
from structured.methods._staged import DescentLearner, Rule, Stage, pretraining
from structured.methods.base import Method, SearchSpace
from structured.methods.registry import register
from structured.models import ModelConfig, Models

Through = Literal["unrolled", "argmin"]
Iterates = Literal["last", "all"]
Start = Literal["network", "centre"]
_STATIONARY = 0.1  # mean |gradient| per entry above which an argmin's derivative is in doubt


@register("spen_e2e")
@dataclass(frozen=True)
class EndToEndSPEN(Method):
    """Train an energy by the cross-entropy of what its own gradient inference predicts.

    The energy is that of `SPEN`, ``E(x, y) = -<A(x), y> + E_phi(x, y)``: A is the feature network
    with its local term and `build` makes E_phi the global term ``c'softplus(C y)``. Inference
    descends the free energy ``E - entropy * H`` for `steps` steps; prediction does the same.

    Objective: ``mean CE(y_T, y)`` of the last point, or the mean over all points with weights
    proportional to ``1 / (T - t + 1)``.

    Gradient of the energy, by `through`:

    - "unrolled": ``d CE / d y_T`` back through all T steps, each of which holds ``d E / d y``; so
      the energy enters by its mixed derivative. Exact for the T steps taken; nothing is dropped.
    - "argmin": the implicit function theorem at the last point, taken for the stationary point of
      the free energy (`bilevel.root`). Dropped are the path through the start, whose share fades as
      inference converges, and the error of a point that has not; `notice` says when that is large.
      Memory does not grow with the steps.

    E_phi has to be smooth in y: where it has kinks (ReLU), its gradient is piecewise constant, and
    what that hides from both ways is said in `notice`.

    Args:
        through: how the gradient passes inference.
        steps: T; 20 in the published code.
        rate: step size; the published code starts a line search from 0.1.
        geometry: "mirror" (steps in logits) or "projected" (steps in points, with clamping; needs
            ``entropy=0`` and ``through="unrolled"``).
        entropy: weight of the entropy; 1 (default) makes the stationary points those of mean-field
            inference, ``y = sigma(-dE/dy)``.
        start: where inference starts: "network", its prediction, or "centre", as published.
        iterates: "last", or "all" points in the loss.
        solver: of the adjoint of "argmin"; the matrix is not symmetric.
        pretrain_epochs: of the network, with cross-entropy.
        energy_epochs: of E_phi alone, the network at rest, after that.
        pretrain_lr: of Adam in pretraining.
        energy_lr: of Adam in the second stage.
        lr: of Adam in the last stage, where both move.
        weight_decay: decoupled, of Adam after pretraining.
        max_norm: clip the norm of the gradient after pretraining; 1 in the published code.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig
        >>> method = EndToEndSPEN(pretrain_epochs=0, energy_epochs=0)
        >>> models = method.build(4, 3, ModelConfig(hidden=(8,)), seed=0)
        >>> learner = method.learner(models, steps_per_epoch=10)
        >>> learner.phase, sorted(learner.step(torch.randn(2, 4), torch.ones(2, 3)))
        ('all', ['cross_entropy', 'stationarity'])

    Reference:
        Belanger, Yang & McCallum, End-to-End Learning for Structured Prediction Energy Networks,
        2017; numbers from their code, https://github.com/davidBelanger/SPEN.
    """

    search_space: ClassVar[SearchSpace] = {
        "pretrain_epochs": (10, 20),
        "pretrain_lr": (3e-4, 1e-3, 3e-3),
        "energy_lr": (3e-4, 1e-3, 3e-3),
        "lr": (1e-4, 3e-4, 1e-3),
        "steps": (10, 20),
        "iterates": ("last", "all"),
    }

    through: Through = "unrolled"
    steps: int = 20
    rate: float = 0.5
    geometry: Geometry = "mirror"
    entropy: float = 1.0
    start: Start = "network"
    iterates: Iterates = "last"
    solver: bilevel.Solver = field(default_factory=lambda: bilevel.GMRES(rtol=None, max_steps=8))
    pretrain_epochs: int = 10
    energy_epochs: int = 5
    pretrain_lr: float = 1e-3
    energy_lr: float = 1e-3
    lr: float = 3e-4
    weight_decay: float = 0.0
    max_norm: float | None = 1.0
    reweights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("through", self.through, get_args(Through))
        check_choice("iterates", self.iterates, get_args(Iterates))
        check_choice("start", self.start, get_args(Start))
        _ = self.descent  # checks its options
        check_part("solver", self.solver, bilevel.Solver, "bilevel.GMRES()")
        check_count("pretrain_epochs", self.pretrain_epochs, 0)
        check_count("energy_epochs", self.energy_epochs, 0)
        for name in ("pretrain_lr", "energy_lr", "lr"):
            check_rate(name, getattr(self, name))
        check_rate("weight_decay", self.weight_decay, zero=True)
        if self.max_norm is not None:
            check_rate("max_norm", self.max_norm)
        if self.through == "argmin" and not self.entropy:
            raise ValueError(
                'entropy: found 0 with through="argmin", wanted a positive weight: without it '
                "minimisers lie in corners, where they do not move with the energy"
            )
        if self.through == "argmin" and self.iterates == "all":
            raise ValueError('iterates: found "all" with through="argmin", which sees the last')

    @property
    def name(self) -> str:
        return "spen-e2e" if self.through == "unrolled" else "spen-e2e-argmin"

    @property
    def descent(self) -> Descent:
        """How inference descends."""
        return Descent(self.steps, self.rate, self.geometry, self.entropy)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is trained when."""
        alone, both = (Rule(rate, self.weight_decay) for rate in (self.energy_lr, self.lr))
        return (
            pretraining(self.pretrain_epochs, self.pretrain_lr),
            Stage("energy", self.energy_epochs, {"energy": alone}),
            Stage("all", None, {"network": both, "energy": both}),
        )

    def build(self, n_features: int, n_labels: int, config: ModelConfig, seed: int) -> Models:
        """Make the common network, and an energy that only couples labels."""
        return build_with_global_term(n_features, n_labels, config, seed)

    def predict(self, models: Models, x: Tensor) -> Tensor:
        """Return where the descent of the free energy ends, ``[B, *event]``."""
        with torch.no_grad():
            logits = models.network(x)
            energy = joint_energy(models, x, logits)
            return self.descent.end(energy, self._first(logits), models.space)

    def unroll(self, models: Models, x: Tensor, logits: Tensor) -> list[Tensor]:
        """Return the logits of all points that inference visits, with their graph.

        Args:
            models: whose energy is descended.
            x: inputs, ``[B, ...]``.
            logits: A(x), ``[B, *event]``.
        """
        space, first = models.space, self._first(logits)
        mirror = self.geometry == "mirror"
        energy = joint_energy(models, x, logits)
        states = self.descent.visit(
            energy, first if mirror else space.relax(first), space, graph=True
        )
        return [state if mirror else space.dual(state) for state in states]

    def stationary(self, models: Models, x: Tensor, logits: Tensor) -> Tensor:
        """Return the logits of the last point, with the derivative of a stationary one.

        The condition is ``entropy * z + dE/dy (relax(z)) = 0``, where mirror steps stand still.
        """
        space, energy = models.space, models.energy
        assert energy is not None
        fixed = logits.detach()
        *_, found = self.descent.visit(joint_energy(models, x, fixed), self._first(fixed), space)

        def condition(parameters: Any, z: Tensor, x: Tensor, local: Tensor) -> Tensor:
            def total(y: Tensor) -> Tensor:
                return functional_call(energy, parameters, (x, y)).sum() - (local * y).sum()

            return self.entropy * z + torch.func.grad(total)(space.relax(z))

        root = bilevel.root(
            condition,
            dict(energy.named_parameters()),
            found,
            args=(x, logits),
            solver=self.solver,
            on_failure="ignore",
        )
        return cast(Tensor, root)

    def _first(self, logits: Tensor) -> Tensor:
        return logits if self.start == "network" else torch.zeros_like(logits)

    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> EndToEndLearner:
        return EndToEndLearner(self, models, seed=seed, device=device)


class EndToEndLearner(DescentLearner):
    """See `EndToEndSPEN`."""

    def __init__(
        self, method: EndToEndSPEN, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        super().__init__(
            method, models, method.stages, max_norm=method.max_norm, seed=seed, device=device
        )
        self._method = method

    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, float]]:
        method, models = self._method, self.models
        logits = self._logits(x)
        if method.through == "argmin":
            visited = [method.stationary(models, x, logits)]
        else:
            visited = method.unroll(models, x, logits)
        used = visited if method.iterates == "all" else visited[-1:]
        weights = [1.0 / (len(used) - t) for t in range(len(used))]
        losses = [-models.space.log_prob(z, y).mean() for z in used]
        loss = torch.stack([w * value for w, value in zip(weights, losses, strict=True)]).sum()
        loss = loss / sum(weights)
        last = visited[-1].detach()
        figures = {"cross_entropy": float(losses[-1].detach())}
        point = models.space.relax(last).requires_grad_()
        energy = joint_energy(models, x, logits.detach())
        slope = energy_slope(energy, point, graph=True)
        # The mean size of the free energy's gradient, per entry.
        stationarity = float((slope.detach() + method.entropy * last).abs().mean())
        figures["stationarity"] = stationarity
        self._notice = self._doubts(stationarity, bends=_bends(slope, point))
        return loss, figures

    def _doubts(self, stationarity: float, *, bends: bool) -> str:
        doubts = []
        if self._method.through == "argmin" and stationarity > _STATIONARY:
            doubts.append(
                f"Inference has not converged (the gradient's mean entry is {stationarity:.1e}): "
                "the implicit derivative is in doubt; take more steps or a larger rate."
            )
        if not bends:
            doubts.append(
                "The energy has no curvature in y; if it has kinks (ReLU), they are lost to the "
                "gradient, so take a smooth activation, such as softplus."
            )
        return " ".join(doubts)


def _bends(slope: Tensor, point: Tensor) -> bool:
    """Whether an energy's gradient, which has its graph, changes with the point at all."""
    if not slope.requires_grad:
        return False
    with torch.enable_grad():
        (bend,) = torch.autograd.grad(slope.sum(), point, materialize_grads=True)
    return bool((bend != 0).any())
