"""Noise-contrastive estimation: tell the gold output from samples of a known distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from structured import losses
from structured.methods._gradient_inference import (
    Descent,
    build_with_global_term,
)
from structured.methods._optimizer import check_choice, check_count, check_rate
from structured.methods._staged import DescentLearner, Rule, Stage, pretraining
from structured.methods.base import Method, SearchSpace
from structured.methods.registry import register
from structured.models import ModelConfig, Models, build_models
from structured.sampling import DetachedHard

NCELoss = Literal["ranking", "binary"]
Noise = Literal["network", "frequency"]
Prediction = Literal["marginals", "gradient"]


@register("nce")
@dataclass(frozen=True)
class NCE(Method):
    """Train the energy of ``p(y | x) = e^{-E(x, y)} / Z`` to tell gold outputs from noise.

    The network A is trained first, with cross-entropy, and then rests: it is the noise distribution
    ``p_N(y | x)``, a product of Bernoulli variables of exact log-probability, and by default also
    the local term, ``E(x, y) = -log p_A(y | x) + E_phi(x, y)``. Then p is the network's independent
    labels, tilted by ``e^{-E_phi}``. `build` makes E_phi the terms of `MultiLabelEnergy` that
    couple labels, ``c'softplus(C y) + g(sum_i y_i)``: what is left to learn is how labels depend on
    each other.

    Objective: with K samples of the noise, "ranking": minus the log of the softmax of ``-E - log
    p_N`` over gold and samples, at gold; consistent whatever ``Z(x)``. "binary": logistic losses of
    ``-E - log p_N - log K``, consistent only where E is normalised, ``Z(x) = 1``.

    Gradient of the energy: exact, ``d E(y)`` and ``d E(yhat_k)`` weighted by how they are taken for
    gold. The noise has no parameters of the energy's, so that nothing is dropped.

    Prediction: "marginals" draws candidates from the network, weighs them by ``w_s ~ e^{-E} /
    p_A`` (self-normalised importance sampling) and returns ``p_A + sum_s (w_s - 1/S) yhat_s``: the
    label probabilities under p, consistent as S grows, with the network's own as a control
    variate, and exactly those where E_phi is constant. They are what thresholds and the expected-F1
    decoder ask for. All rows share the noise of the candidates, from a fixed seed: a prediction
    depends on its row alone. "gradient" descends ``E - H`` from the network's prediction instead:
    the mean-field approximation of the same probabilities.

    Args:
        loss: "ranking" or "binary".
        noise: "network", or "frequency": labels drawn by how often they occur in training.
        samples: K.
        residual: whether minus the network's log-likelihood is part of E. If not, E is the usual
            energy alone, with a network of its own for x, as published.
        pretrain_epochs: of the network, with cross-entropy.
        pretrain_lr: of Adam in pretraining.
        lr: of Adam on the energy.
        weight_decay: decoupled, of Adam on the energy.
        max_norm: clip the norm of the energy's gradient; None does not.
        prediction: "marginals" or "gradient".
        candidates: S.
        steps: of "gradient".
        rate: step size of "gradient", in logits.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> import torch
        >>> from structured.models import ModelConfig
        >>> method = NCE(pretrain_epochs=0)
        >>> models = method.build(4, 3, ModelConfig(hidden=(8,)), seed=0)
        >>> learner = method.learner(models, steps_per_epoch=10)
        >>> learner.phase, sorted(learner.step(torch.randn(2, 4), torch.ones(2, 3)))
        ('contrast', ['effective_samples', 'gold_share', 'nce'])

    Reference:
        Ma & Collins, Noise Contrastive Estimation and Negative Sampling for Conditional Models,
        2018; residual energies: Deng et al., 2020.
    """

    search_space: ClassVar[SearchSpace] = {
        "pretrain_epochs": (10, 20),
        "pretrain_lr": (3e-4, 1e-3, 3e-3),
        "lr": (3e-3, 1e-2, 3e-2),
        "weight_decay": (0.0, 1e-2, 1e-1),
        "samples": (20, 40),
    }

    loss: NCELoss = "ranking"
    noise: Noise = "network"
    samples: int = 40
    residual: bool = True
    pretrain_epochs: int = 10
    pretrain_lr: float = 1e-3
    lr: float = 1e-2
    weight_decay: float = 0.0
    max_norm: float | None = None
    prediction: Prediction = "marginals"
    candidates: int = 200
    steps: int = 20
    rate: float = 0.5

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, get_args(NCELoss))
        check_choice("noise", self.noise, get_args(Noise))
        check_choice("prediction", self.prediction, get_args(Prediction))
        check_count("samples", self.samples, 1)
        check_count("candidates", self.candidates, 1)
        check_count("pretrain_epochs", self.pretrain_epochs, 0)
        for name in ("pretrain_lr", "lr"):
            check_rate(name, getattr(self, name))
        check_rate("weight_decay", self.weight_decay, zero=True)
        if self.max_norm is not None:
            check_rate("max_norm", self.max_norm)
        _ = self.descent  # checks its options

    @property
    def name(self) -> str:
        return f"nce-{self.loss}"

    @property
    def reweights(self) -> bool:
        """Whether the energy is what is beyond the network: if residual."""
        return self.residual

    @property
    def descent(self) -> Descent:
        """How "gradient" descends."""
        return Descent(self.steps, self.rate, "mirror", 1.0)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is trained when."""
        return (
            pretraining(self.pretrain_epochs, self.pretrain_lr),
            Stage("contrast", None, {"energy": Rule(self.lr, self.weight_decay)}),
        )

    def build(self, n_features: int, n_labels: int, config: ModelConfig, seed: int) -> Models:
        """Make the common network, and the energy or, if residual, what couples labels alone."""
        if self.residual:
            return build_with_global_term(n_features, n_labels, config, seed, counts=True)
        return build_models(n_features, n_labels, config, seed)

    def energies(self, models: Models, x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """Return E(x, y), ``[..., B]``, of points ``[..., B, *event]``, given A(x)."""
        energy = models.energy
        assert energy is not None
        found = energy(x, y)
        return found - models.space.log_prob(logits, y) if self.residual else found

    def marginals(
        self, models: Models, x: Tensor, logits: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return probabilities under p by importance sampling, ``[B, *event]``.

        Args:
            models: whose energy tilts the network.
            x: inputs, ``[B, ...]``.
            logits: A(x), ``[B, *event]``.
            generator: of the candidates; None takes a new one of a fixed seed.
        """
        space = models.space
        if generator is None:
            generator = torch.Generator(logits.device).manual_seed(0)
        noise = space.noise(
            (self.candidates, 1, *logits.shape[1:]),
            generator=generator,
            dtype=logits.dtype,
            device=logits.device,
        ).expand(-1, *logits.shape)
        drawn = space.sample(logits, self.candidates, DetachedHard(), noise=noise)
        log_weights = -self.energies(models, x, logits, drawn) - space.log_prob(logits, drawn)
        excess = torch.softmax(log_weights, dim=0) - 1.0 / self.candidates
        return space.project(space.relax(logits) + torch.einsum("sb,sb...->b...", excess, drawn))

    def predict(self, models: Models, x: Tensor) -> Tensor:
        """Return probabilities of the labels under p, ``[B, *event]``; see the class."""
        with torch.no_grad():
            logits = models.network(x)
            if self.prediction == "marginals":
                return self.marginals(models, x, logits)
            return self.descent.end(
                lambda y: self.energies(models, x, logits, y), logits, models.space
            )

    def learner(
        self,
        models: Models,
        *,
        steps_per_epoch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> NCELearner:
        return NCELearner(self, models, seed=seed, device=device)


class NCELearner(DescentLearner):
    """See `NCE`."""

    def __init__(
        self, method: NCE, models: Models, *, seed: int, device: torch.device | str
    ) -> None:
        super().__init__(
            method, models, method.stages, max_norm=method.max_norm, seed=seed, device=device
        )
        self._method = method
        # Sums of gold outputs over all dimensions but the last, and how many were summed: counted
        # from the first step on, one of each outcome beforehand.
        self._counted = torch.tensor([1.0, 2.0], dtype=torch.float64)[:, None]

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        if self._method.noise == "frequency":
            flat = y.detach().double().cpu().flatten(end_dim=-2)
            total = torch.full((y.shape[-1],), float(len(flat)), dtype=torch.float64)
            self._counted = self._counted + torch.stack([flat.sum(dim=0), total])
        return super().step(x, y)

    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, float]]:
        method, space = self._method, self.models.space
        logits = self._logits(x)
        noise = logits if method.noise == "network" else self._frequencies(y)
        drawn = space.sample(noise, method.samples, DetachedHard(), generator=self.generator)
        points = torch.cat([y[None], drawn])
        energies = method.energies(self.models, x, logits, points)
        log_noise = space.log_prob(noise, points)
        contrast = losses.nce_ranking if method.loss == "ranking" else losses.nce_binary
        loss = contrast(energies[0], energies[1:], log_noise[0], log_noise[1:]).mean()
        scores = (-energies - log_noise).detach()
        weights = torch.softmax(scores[1:], dim=0)
        return loss, {
            "nce": float(loss.detach()),
            "gold_share": float(torch.softmax(scores, dim=0)[0].mean()),
            "effective_samples": float((1.0 / weights.square().sum(dim=0)).mean()),
        }

    def _frequencies(self, y: Tensor) -> Tensor:
        """Return the logits of the outputs' frequencies in training so far, like `y`."""
        sums, counts = self._counted
        rates = (sums / counts).to(y.device, y.dtype)
        return self.models.space.dual(rates.expand_as(y))

    def _progress(self) -> dict[str, Any]:
        return {**super()._progress(), "counted": self._counted}

    def _load_progress(self, state: dict[str, Any]) -> None:
        super()._load_progress(state)
        self._counted = state["counted"]
