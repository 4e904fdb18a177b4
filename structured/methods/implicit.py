"""The paper's method: an energy trained through the inference network it trains (Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch

import bilevel
from bilevel.products import HVP, check_hvp
from structured import costs
from structured.methods._objectives import Cost, Objectives, trained_energy
from structured.methods._optimizer import OptimizerName, check_choice, check_count, check_rate
from structured.methods._parts import check_cost, check_part
from structured.methods._staged import EnergyStart, check_start
from structured.methods.base import Method, SearchSpace
from structured.methods.figures import TrustLimits
from structured.methods.hypergradient import NoAdjoint
from structured.methods.implicit_learner import ImplicitLearner
from structured.methods.primaries import Margin, Primary
from structured.methods.registry import register
from structured.models import Models
from structured.sampling import Sampler

GradientName = Literal["direct", "implicit", "unrolled"]


@register("implicit")
@dataclass(frozen=True)
class Implicit(Method):
    """Train an energy for a primary loss, through the inference network trained on that energy.

    The network minimises ``L_A = mean [E(x, A(x)) + lam CE(A(x), y)] + r ||theta||^2`` (eq. 6);
    the energy minimises the primary loss ``L_P`` at the network's output or samples of it. After
    pretraining with cross-entropy each step takes `inner_steps` steps on theta, one hypergradient
    of L_P and one step on phi (`bilevel.BilevelOptimizer`). Prediction needs the network alone.

    The paper leaves most numbers open. The defaults keep an epoch cheap and the adjoint stable;
    they are a start for a search, not the end of one.

    Args:
        primary: the primary loss.
        gradient: "implicit", the hypergradient; "direct", its part at fixed theta; "unrolled", the
            derivative through the last inner steps (`structured.methods.UnrolledProblem`).
            Switching it changes nothing else, neither steps on theta nor any random number.
        inner_steps: T, steps on theta on each minibatch.
        outer_every: a hypergradient and a step on phi on every so many minibatches; on those in
            between theta alone moves. It makes an epoch cheap: with 4 (default) the energy takes
            its step after four steps of the network, each on a minibatch of its own.
        solver: of the adjoint system; any of `bilevel`'s.
        hvp: how products with the Hessian are made; see `bilevel.implicit_grad`.
        damping: added to the Hessian.
        gauss_newton: take ``J' (d2 L_A / d logits2)_+ J`` for the Hessian, which cannot be
            indefinite: the curvature of cross-entropy, and of the energy only what is surely
            positive (`Objectives.convex_part`).
        ce_weight: lam, the weight of cross-entropy in L_A.
        cost_weight: subtract this much of the cost from L_A (cost-augmented inference; the paper
            replaces it by cross-entropy).
        l2: r, the weight of ``||theta||^2`` in L_A.
        sampler: how candidates are drawn, and whether and how gradients pass; None for what the
            primary loss prefers, the soft output or straight-through samples.
        cost: Delta, one of `structured.costs` or a function like them.
        outer_lr: learning rate of Adam on phi.
        outer_weight_decay: of Adam on phi, decoupled from the gradient.
        inner_lr: learning rate of the inner optimizer on theta, after pretraining.
        inner_optimizer: "adam" or "sgd".
        unroll_rate: step size of the plain gradient steps that "unrolled" differentiates; None for
            `inner_lr`.
        pretrain_epochs: with cross-entropy, before the energy is used.
        pretrain_lr: learning rate of Adam in pretraining.
        implicit_after: so many epochs after pretraining take the direct gradient alone.
        energy_start: how the energy's local term starts: "random" (default) leaves it,
            "cross_entropy" trains it as a classifier beside the network in pretraining (as SPEN
            does), "network" makes it minus the pretrained network's logits (InfNet; both must have
            the same sizes).
        warm_start: start each solve at the adjoint of the step before.
        reuse_state: prepare the solver (a step size, a preconditioner) anew after so many
            hypergradients; None (default) once an epoch.
        max_norm: clip the norm of phi's gradient; None does not.
        trust: from where on the implicit term is called untrustworthy.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.methods import ContrastiveDivergence
        >>> from structured.models import ModelConfig, build_models
        >>> models = build_models(4, 3, ModelConfig(hidden=(8,), energy_hidden=(8,)), seed=0)
        >>> method = Implicit(primary=ContrastiveDivergence(), pretrain_epochs=0, outer_every=1)
        >>> learner = method.learner(models, steps_per_epoch=10)
        >>> figures = learner.step(torch.randn(2, 4), torch.ones(2, 3))
        >>> learner.phase, figures["implicit_norm"] > 0
        ('implicit', True)

    Reference:
        Shankar, Implicit Training of Energy Model for Structured Prediction, Algorithm 1.
    """

    reweights: ClassVar[bool] = True

    search_space: ClassVar[SearchSpace] = {
        "pretrain_lr": (3e-4, 1e-3, 3e-3),
        "inner_lr": (3e-4, 1e-3, 3e-3),
        "outer_lr": (1e-3, 3e-3, 1e-2),
        "ce_weight": (0.3, 1.0, 3.0),
        "solver.max_steps": (1, 2, 3),
    }

    primary: Primary = field(default_factory=Margin)
    gradient: GradientName = "implicit"
    inner_steps: int = 1
    outer_every: int = 4
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
    energy_start: EnergyStart = "random"
    warm_start: bool = False
    reuse_state: int | None = None
    max_norm: float | None = None
    trust: TrustLimits = field(default_factory=TrustLimits)

    def __post_init__(self) -> None:
        check_part("primary", self.primary, Primary, "structured.methods.Value()")
        check_part("solver", self.solver, bilevel.Solver, "bilevel.CG()")
        check_part("sampler", self.sampler, Sampler, "structured.sampling.Soft()", optional=True)
        check_part("trust", self.trust, TrustLimits, "structured.methods.TrustLimits()")
        check_cost(self.cost)
        check_choice("gradient", self.gradient, get_args(GradientName))
        check_choice("inner_optimizer", self.inner_optimizer, get_args(OptimizerName))
        check_start(self.energy_start)
        check_count("inner_steps", self.inner_steps, 1)
        check_count("outer_every", self.outer_every, 1)
        check_count("pretrain_epochs", self.pretrain_epochs, 0)
        check_count("implicit_after", self.implicit_after, 0)
        if self.reuse_state is not None:
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
        energy = trained_energy(models)
        return ImplicitLearner(
            self, models, energy, steps_per_epoch=steps_per_epoch, seed=seed, device=device
        )
