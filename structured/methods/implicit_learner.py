"""A run of the implicit method: pretraining, then steps on the network and the energy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

import bilevel
from structured.energies import unaries_from_network
from structured.methods._objectives import (
    Minibatch,
    draw_masks,
    pretraining_loss,
    training_logits,
)
from structured.methods._optimizer import descend, make_optimizer
from structured.methods._staged import PRETRAINING, unaries_of
from structured.methods.base import Learner
from structured.methods.figures import distrust, hypergradient_figures, norm, objective_figures
from structured.methods.hypergradient import UnrolledProblem
from structured.models import Models

if TYPE_CHECKING:
    from structured.methods.implicit import Implicit


class ImplicitLearner(Learner):
    """See `structured.methods.Implicit`."""

    def __init__(
        self,
        method: Implicit,
        models: Models,
        energy: nn.Module,
        *,
        steps_per_epoch: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        super().__init__(method, models, seed=seed, device=device)
        self._method, self._energy = method, energy
        self._objectives = method.objectives(models)
        self._phi = dict(energy.named_parameters())
        self._theta = dict(models.network.named_parameters())
        pretrained, self._unaries = list(self._theta.values()), None
        if method.energy_start == "cross_entropy":
            self._unaries = unaries_of(energy)
            pretrained += list(self._unaries.parameters())
        self._pretraining = make_optimizer("adam", pretrained, method.pretrain_lr)
        self._notice = ""
        each_epoch = max(1, steps_per_epoch // method.outer_every)
        self._reuse = each_epoch if method.reuse_state is None else method.reuse_state
        self._begin()

    @property
    def phase(self) -> str:
        method = self._method
        if self.epoch < method.pretrain_epochs:
            return PRETRAINING
        return "direct" if self.epoch < self.preparation else method.gradient

    @property
    def preparation(self) -> int:
        return self._method.pretrain_epochs + self._method.implicit_after

    @property
    def notice(self) -> str:
        return self._notice

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        if self.phase == PRETRAINING:
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
        logits = training_logits(self.models.network, x, self.generator)
        local = None if self._unaries is None else self._unaries(x)
        loss, figures = pretraining_loss(self.models.space, logits, local, y)
        descend(self._pretraining, loss)
        return figures

    def _descend(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Steps on theta alone."""
        self._notice = ""
        phi = {name: leaf.detach() for name, leaf in self._phi.items()}
        value = y.new_zeros(())
        for _ in range(self._method.inner_steps):
            value = self._objectives.inner(phi, self._theta, Minibatch(x, y, self._masks(x)))
            descend(self._inner, value)
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

    def _begin(self) -> None:
        """Put what follows pretraining at its beginning."""
        method = self._method
        self._outer = make_optimizer(
            "adam", self._phi.values(), method.outer_lr, method.outer_weight_decay
        )
        self._inner = make_optimizer(method.inner_optimizer, self._theta.values(), method.inner_lr)
        self._loop: bilevel.BilevelOptimizer | None = None
        self._loop_phase = ""
        self._minibatches = 0

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
            reuse_state=self._reuse if phase == "implicit" else 1,
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
            self._begin()
            self._pretraining.load_state_dict(state["optimizer"])
            return
        self._minibatches = int(state["minibatches"])
        self._open(state["phase"])
        assert self._loop is not None
        present = self._loop.state_dict()
        held = {name: present[name] for name in ("phi", "theta", "rng")}
        self._loop.load_state_dict(state["loop"] | held)
