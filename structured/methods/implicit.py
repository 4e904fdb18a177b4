"""The paper's method: an energy trained through the inference network it trains (Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

import bilevel
from bilevel.products import HVP, check_hvp
from structured import costs
from structured.energies import unaries_from_network
from structured.methods._objectives import Cost, Minibatch, Objectives, draw_masks
from structured.methods._optimizer import OptimizerName, check_count, check_rate, make_optimizer
from structured.methods.base import Learner, Method
from structured.methods.figures import (
    TrustLimits,
    distrust,
    hypergradient_figures,
    norm,
    objective_figures,
)
from structured.methods.hypergradient import NoAdjoint, UnrolledProblem
from structured.methods.primaries import Margin, Primary
from structured.models import Models
from structured.sampling import Sampler

GradientName = Literal["direct", "implicit", "unrolled"]
EnergyStart = Literal["network", "cross_entropy", "random"]
_CHOICES = {
    "gradient": ("direct", "implicit", "unrolled"),
    "energy_start": ("network", "cross_entropy", "random"),
    "inner_optimizer": ("adam", "sgd"),
}


@dataclass(frozen=True)
class Implicit(Method):
    """Train an energy for a primary loss, through the inference network trained on that energy.

    The network minimises ``L_A = mean [E(x, A(x)) + lam CE(A(x), y)] + r ||theta||^2`` (eq. 6);
    the energy minimises the primary loss ``L_P`` at the network's output or samples of it. After
    pretraining with cross-entropy each step takes `inner_steps` steps on theta, one hypergradient
    of L_P and one step on phi (`bilevel.BilevelOptimizer`). Prediction needs the network alone.

    The paper leaves most numbers open; the defaults here were chosen on validation data.

    Args:
        primary: the primary loss.
        gradient: "implicit", the hypergradient; "direct", its part at fixed theta; "unrolled", the
            derivative through the last inner steps (`structured.methods.UnrolledProblem`).
            Switching it changes nothing else, neither steps on theta nor any random number.
        inner_steps: T, steps on theta on each minibatch.
        outer_every: a hypergradient and a step on phi on every so many minibatches; on those in
            between theta alone moves. What makes an epoch cheap.
        solver: of the adjoint system; any of `bilevel`'s.
        hvp: how products with the Hessian are made; see `bilevel.implicit_grad`.
        damping: added to the Hessian.
        gauss_newton: take ``J' (d2 L_A / d logits2)_+ J`` for the Hessian, which cannot be
            indefinite: the curvature of cross-entropy, and of the energy only what is surely
            positive (`Objectives.convex_part`).
        ce_weight: lam.
        cost_weight: subtract this much of the cost from L_A (cost-augmented inference; the paper
            replaces it by cross-entropy).
        l2: r.
        sampler: how candidates are drawn, and whether and how gradients pass; None for what the
            primary loss prefers, the soft output or straight-through samples.
        cost: Delta, one of `structured.costs` or a function like them.
        outer_lr: of Adam on phi.
        outer_weight_decay: decoupled, of Adam on phi.
        inner_lr: of the inner optimizer on theta, after pretraining.
        inner_optimizer: "adam" or "sgd".
        unroll_rate: step size of the plain gradient steps that "unrolled" differentiates; None for
            `inner_lr`.
        pretrain_epochs: with cross-entropy, before the energy is used.
        pretrain_lr: of Adam in pretraining.
        implicit_after: so many epochs after pretraining take the direct gradient alone.
        energy_start: how the energy's local term starts: "cross_entropy" trains it as a classifier
            beside the network in pretraining (as SPEN does), "network" makes it minus the
            pretrained network's logits (InfNet; both must have the same sizes), "random" leaves it.
        warm_start: start each solve at the adjoint of the step before.
        reuse_state: prepare the solver (a step size, a preconditioner) every so many steps.
        max_norm: clip the norm of phi's gradient; None does not.
        trust: from where on the implicit term is called untrustworthy.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig, build_models
        >>> models = build_models(4, 3, ModelConfig(hidden=(8,), energy_hidden=(8,)), seed=0)
        >>> learner = Implicit(pretrain_epochs=0).learner(models, steps_per_epoch=10)
        >>> figures = learner.step(torch.randn(2, 4), torch.ones(2, 3))
        >>> learner.phase, figures["implicit_norm"] > 0
        ('implicit', True)

    Reference:
        Shankar, Implicit Training of Energy Model for Structured Prediction, Algorithm 1.
    """

    primary: Primary = field(default_factory=Margin)
    gradient: GradientName = "implicit"
    inner_steps: int = 1
    outer_every: int = 1
    solver: bilevel.Solver = field(default_factory=lambda: bilevel.CG(rtol=None, max_steps=2))
    hvp: HVP = "auto"
    damping: float = 1e-2
    gauss_newton: bool = True
    ce_weight: float = 1.0
    cost_weight: float = 0.0
    l2: float = 0.0
    sampler: Sampler | None = None
    cost: Cost = costs.soft_f1
    outer_lr: float = 1e-3
    outer_weight_decay: float = 0.0
    inner_lr: float = 1e-3
    inner_optimizer: OptimizerName = "adam"
    unroll_rate: float | None = None
    pretrain_epochs: int = 10
    pretrain_lr: float = 1e-3
    implicit_after: int = 0
    energy_start: EnergyStart = "cross_entropy"
    warm_start: bool = False
    reuse_state: int = 1
    max_norm: float | None = None
    trust: TrustLimits = field(default_factory=TrustLimits)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}: found {getattr(self, name)!r}, wanted one of {', '.join(choices)}"
                )
        check_count("inner_steps", self.inner_steps, 1)
        check_count("outer_every", self.outer_every, 1)
        check_count("pretrain_epochs", self.pretrain_epochs, 0)
        check_count("implicit_after", self.implicit_after, 0)
        check_count("reuse_state", self.reuse_state, 1)
        for name in ("damping", "ce_weight", "cost_weight", "l2", "outer_lr", "inner_lr"):
            check_rate(name, getattr(self, name), zero=True)
        check_rate("outer_weight_decay", self.outer_weight_decay, zero=True)
        check_rate("pretrain_lr", self.pretrain_lr)
        for name in ("unroll_rate", "max_norm"):
            if getattr(self, name) is not None:
                check_rate(name, getattr(self, name))
        check_hvp(self.hvp)
        if self.primary.samples > 1 and not self.drawing.needs_noise:
            raise ValueError(
                f"samples: found {self.primary.samples} with the sampler {self.drawing}, whose "
                "candidates are all the same point; use one sample, or a sampler that draws"
            )

    @property
    def name(self) -> str:
        return f"{self.gradient}-{self.primary.name}"

    @property
    def drawing(self) -> Sampler:
        """The sampler in force."""
        return self.primary.default_sampler if self.sampler is None else self.sampler

    def objectives(self, models: Models) -> Objectives:
        """Return L_P and L_A as functions of phi, theta and a minibatch."""
        return Objectives(
            models=models,
            primary=self.primary,
            sampler=self.drawing,
            cost=self.cost,
            ce_weight=self.ce_weight,
            cost_weight=self.cost_weight,
            l2=self.l2,
        )

    def problem(self, objectives: Objectives, *, direct: bool = False) -> bilevel.ImplicitProblem:
        """Return the bilevel problem; with `direct`, one whose hypergradient is the direct part."""
        curvature = None
        if self.gauss_newton:
            curvature = bilevel.GaussNewton(
                objectives.network_output,
                objectives.convex_part,
                objectives.penalty if self.l2 else None,
            )
        return bilevel.ImplicitProblem(
            objectives.outer,
            objectives.inner,
            solver=NoAdjoint() if direct else self.solver,
            damping=self.damping,
            curvature=None if direct else curvature,
            hvp=self.hvp,
            # The learner says what went wrong, once, in `notice`; a warning a step says less.
            on_failure="ignore",
        )

    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> ImplicitLearner:
        if models.energy is None:
            raise ValueError("models: found no energy, wanted one; this method trains it")
        return ImplicitLearner(self, models, models.energy, seed=seed, device=device)


class ImplicitLearner(Learner):
    """See `Implicit`."""

    def __init__(
        self,
        method: Implicit,
        models: Models,
        energy: nn.Module,
        *,
        seed: int,
        device: torch.device | str,
    ) -> None:
        super().__init__(method, models, seed=seed, device=device)
        self._method, self._energy = method, energy
        self._objectives = method.objectives(models)
        self._phi = dict(energy.named_parameters())
        self._theta = dict(models.network.named_parameters())
        pretrained = list(self._theta.values())
        if method.energy_start == "cross_entropy":
            pretrained += list(self._unaries().parameters())
        self._pretraining = make_optimizer("adam", pretrained, method.pretrain_lr)
        self._outer = make_optimizer(
            "adam", self._phi.values(), method.outer_lr, method.outer_weight_decay
        )
        self._inner = make_optimizer(method.inner_optimizer, self._theta.values(), method.inner_lr)
        self._loop: bilevel.BilevelOptimizer | None = None
        self._loop_phase = ""
        self._minibatches = 0
        self._notice = ""

    @property
    def phase(self) -> str:
        method = self._method
        if self.epoch < method.pretrain_epochs:
            return "pretraining"
        if self.epoch < method.pretrain_epochs + method.implicit_after:
            return "direct"
        return method.gradient

    @property
    def notice(self) -> str:
        return self._notice

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        if self.phase == "pretraining":
            return self._pretrain(x, y)
        if self._loop_phase != self.phase:
            if self._loop is None and self._method.energy_start == "network":
                unaries_from_network(cast(Any, self._energy), self.models.network)
            self._open(self.phase)
        self._minibatches += 1
        if self._minibatches % self._method.outer_every:
            return self._descend(x, y)
        return self._joint(x, y)

    def _pretrain(self, x: Tensor, y: Tensor) -> dict[str, float]:
        network, space = self.models.network, self.models.space
        masks = draw_masks(network, x, self.generator)
        logits = network(x) if masks is None else network(x, dropout_masks=masks)
        loss = -space.log_prob(logits, y).mean()
        figures = {"cross_entropy": float(loss.detach())}
        if self._method.energy_start == "cross_entropy":
            local = -space.log_prob(-self._unaries()(x), y).mean()
            figures["energy_cross_entropy"] = float(local.detach())
            loss = loss + local
        self._pretraining.zero_grad(set_to_none=True)
        loss.backward()
        self._pretraining.step()
        return figures

    def _descend(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Steps on theta alone."""
        self._notice = ""
        phi = {name: leaf.detach() for name, leaf in self._phi.items()}
        value = y.new_zeros(())
        for _ in range(self._method.inner_steps):
            value = self._objectives.inner(phi, self._theta, Minibatch(x, y, self._masks(x)))
            value.backward()
            self._inner.step()
            self._inner.zero_grad(set_to_none=True)
        return {"auxiliary": float(value.detach())}

    def _joint(self, x: Tensor, y: Tensor) -> dict[str, float]:
        loop, method = self._loop, self._method
        assert loop is not None
        path = [(Minibatch(x, y, self._masks(x)),) for _ in range(method.inner_steps)]
        batch = Minibatch(x, y, self._masks(x), self._noise(y))
        outer_args: tuple[Any, ...] = (batch,)
        if self.phase == "unrolled":
            start = {name: leaf.detach().clone() for name, leaf in self._theta.items()}
            outer_args = (batch, start, path)
        info = loop.step(inner_args=(batch,), outer_args=outer_args, inner_batches=path)
        solved = self.phase == "implicit"
        figures = hypergradient_figures(info, solved=solved)
        figures |= objective_figures(self._objectives, self._phi, self._theta, batch)
        if solved:
            self._notice = distrust(info, norm(self._theta), method.trust)
            figures["trust"] = 0.0 if self._notice else 1.0
        return figures

    def _masks(self, x: Tensor) -> Any:
        return draw_masks(self.models.network, x, self.generator)

    def _noise(self, y: Tensor) -> Tensor | None:
        if not self._method.drawing.needs_noise:
            return None
        shape = (self._method.primary.samples, *y.shape)
        return self.models.space.noise(
            shape, generator=self.generator, dtype=y.dtype, device=y.device
        )

    def _unaries(self) -> nn.Module:
        unaries = getattr(self._energy, "unaries", None)
        if not isinstance(unaries, nn.Module):
            raise ValueError(
                f"energy_start: found {self._method.energy_start!r}, but "
                f'{type(self._energy).__name__} has no `unaries`; use energy_start="random"'
            )
        return unaries

    def _open(self, phase: str) -> None:
        """Begin a phase after pretraining: another way to phi's gradient, the same optimizers."""
        method = self._method
        problem: Any = method.problem(self._objectives, direct=phase != "implicit")
        if phase == "unrolled":
            rate = method.inner_lr if method.unroll_rate is None else method.unroll_rate
            problem = UnrolledProblem(problem, rate)
        self._loop = bilevel.BilevelOptimizer(
            problem,
            self._outer,
            self._inner,
            phi=self._phi,
            theta=self._theta,
            inner_steps=method.inner_steps,
            warm_start=method.warm_start and phase == "implicit",
            reuse_state=method.reuse_state if phase == "implicit" else 1,
            outer_max_norm=method.max_norm,
        )
        self._loop_phase = phase

    def _progress(self) -> dict[str, Any]:
        if self._loop is None:
            return {"phase": "", "optimizer": self._pretraining.state_dict()}
        state = self._loop.state_dict()
        # The modules hold these; the global generators belong to whoever runs the learner.
        for name in ("phi", "theta", "rng"):
            del state[name]
        return {"phase": self._loop_phase, "minibatches": self._minibatches, "loop": state}

    def _load_progress(self, state: dict[str, Any]) -> None:
        self._notice = ""
        if not state["phase"]:
            self._loop, self._loop_phase, self._minibatches = None, "", 0
            self._pretraining.load_state_dict(state["optimizer"])
            return
        self._minibatches = int(state["minibatches"])
        self._open(state["phase"])
        assert self._loop is not None
        present = self._loop.state_dict()
        held = {name: present[name] for name in ("phi", "theta", "rng")}
        self._loop.load_state_dict(state["loop"] | held)
