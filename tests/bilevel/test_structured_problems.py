"""Nested problems, models, arguments of every kind and dropout under transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call, grad, jacfwd, jvp, vmap

import bilevel
from tests.bilevel.implicit_cases import (
    F64,
    PHI,
    PHIS,
    SCALE,
    W,
    assert_near,
    inner,
)
from tests.bilevel.problems import normal


def test_an_inner_problem_may_contain_another() -> None:
    # s*(t) = argmin_s (s - t^2)^2 + s^2 = t^2 / 2;  theta*(p) = argmin_t (t - p)^2 + s*(t).
    def lower(t: Tensor, s: Tensor) -> Tensor:
        return ((s - t**2) ** 2 + s**2).sum()

    def upper(p: Tensor, t: Tensor) -> Tensor:
        s = bilevel.argmin(lower, t, (t**2 / 2).detach())
        return ((t - p) ** 2 + s).sum()

    phi = torch.tensor([0.5, 2.0], dtype=F64)
    theta = phi / 1.5  # 2 (t - p) + t = 0
    thirds = torch.full((2,), 2 / 3, dtype=F64)
    found = bilevel.implicit_grad(lambda p, t: t.sum(), upper, phi, theta)
    assert_near(found, thirds)
    solver = bilevel.CG(rtol=1e-12)
    assert_near(
        bilevel.implicit_grad(lambda p, t: t.sum(), upper, phi, theta, solver=solver), thirds
    )
    assert_near(grad(lambda p: bilevel.argmin(upper, p, theta).sum())(phi), thirds)
    assert gradcheck(
        lambda p: bilevel.argmin(upper, p, (p / 1.5).detach()), phi.clone().requires_grad_()
    )
    per_problem = vmap(
        lambda p, t: bilevel.implicit_grad(lambda p, t: t.sum(), upper, p.view(1), t.view(1))
    )
    assert_near(per_problem(phi, theta).squeeze(1), thirds)


def test_a_model_called_through_functional_call_works_under_every_transform() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    theta = {name: leaf.detach() for name, leaf in model.named_parameters()}
    x, labels = normal(6, 2, seed=17), torch.arange(6) % 3

    def loss(phi: Tensor, theta: dict[str, Tensor], x: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(model, theta, (x,))
        penalty = sum((leaf**2).sum() for leaf in theta.values())
        return nn.functional.cross_entropy(logits, labels) + phi.exp() * penalty

    def value(phi: Tensor, theta: dict[str, Tensor], x: Tensor) -> Tensor:
        solved = bilevel.argmin(loss, phi, theta, args=(x, labels), damping=1.0)
        return torch.cat([leaf.reshape(-1) for leaf in solved.values()]).square().sum()

    phi = torch.tensor(-1.0, dtype=F64)
    points = torch.stack([phi, phi + 1])
    inputs = torch.stack([x, -x])
    slope = grad(value)
    together = vmap(slope, (0, None, 0))(points, theta, inputs)
    apart = [slope(p, theta, rows) for p, rows in zip(points, inputs, strict=True)]
    assert_near(together, torch.stack(apart))
    with_info = bilevel.implicit_grad(
        lambda p, t, *rest: torch.cat([leaf.reshape(-1) for leaf in t.values()]).square().sum(),
        loss,
        phi,
        theta,
        inner_args=(x, labels),
        damping=1.0,
    )
    assert_near(with_info, slope(phi, theta, x))
    assert_near(jacfwd(value)(phi, theta, x), with_info)


def test_arguments_may_be_integers_masks_strings_and_none() -> None:
    index, mask = torch.tensor([2, 0, 1]), torch.tensor([True, False, True])

    def picked(phi: Tensor, theta: Tensor, *args: Any) -> Tensor:
        index, options, nothing = args
        assert nothing is None
        assert options["kind"] == "masked"
        moved = torch.where(options["mask"], theta[index], theta)
        return inner(phi, theta, options["scale"]) + (moved**2).sum() / 4

    def attached(phi: Tensor, scale: Tensor) -> Tensor:
        options = {"mask": mask, "kind": "masked", "scale": scale}
        return bilevel.argmin(picked, phi, W, args=[index, options, None])

    phi, scale = PHI.clone().requires_grad_(), SCALE.clone().requires_grad_()
    found = torch.autograd.grad(attached(phi, scale).sum(), (phi, scale), create_graph=True)
    assert_near(found, grad(lambda phi, scale: attached(phi, scale).sum(), (0, 1))(PHI, SCALE))
    torch.autograd.grad((found[0].sum(), found[1]), (phi, scale))
    tangent = jvp(attached, (PHI, SCALE), (PHI, SCALE))[1]
    numeric = found[0] @ PHI + found[1] * SCALE
    assert_near(tangent.sum(), numeric.detach())
    indices = torch.stack([index, index.flip(0)])
    together = vmap(
        grad(
            lambda p, i: bilevel.argmin(
                picked, p, W, args=(i, {"mask": mask, "kind": "masked", "scale": SCALE}, None)
            ).sum()
        ),
        (None, 0),
    )(PHI, indices)
    assert_near(together[0], found[0].detach())


def test_the_same_dropout_mask_is_drawn_under_vmap_as_in_the_loop() -> None:
    def dropped(phi: Tensor, theta: Tensor) -> Tensor:
        return inner(phi, nn.functional.dropout(theta, 0.5)) + (theta**2).sum()

    def slope(phi: Tensor) -> Tensor:
        return grad(lambda p: bilevel.argmin(dropped, p, W).sum())(phi)

    torch.manual_seed(0)
    together = vmap(slope, randomness="same")(PHIS)
    torch.manual_seed(0)
    assert_near(together, torch.stack([slope(phi) for phi in PHIS]))
    torch.manual_seed(1)
    assert not torch.allclose(together, torch.stack([slope(phi) for phi in PHIS]))
