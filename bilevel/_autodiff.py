"""Products with a Jacobian that can be differentiated again, inside and outside transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bilevel import _transforms


def vjp(
    function: Callable[..., Tensor], primals: Sequence[Tensor], cotangent: Tensor
) -> list[Tensor | None]:
    """``cotangent' d function / d primal`` for every floating primal, None for the others.

    The result can be differentiated again, in the primals, the cotangent and whatever the function
    closes over, under ``torch.autograd`` and under ``torch.func`` transforms alike.
    """
    floating = [i for i, primal in enumerate(primals) if primal.is_floating_point()]
    chosen = [primals[i] for i in floating]

    def restricted(*moving: Tensor) -> Tensor:
        everything = list(primals)
        for index, primal in zip(floating, moving, strict=True):
            everything[index] = primal
        return function(*everything)

    found = (
        _functional(restricted, chosen, cotangent)
        if _transforms.active()
        else _plain(restricted, chosen, cotangent)
    )
    out: list[Tensor | None] = [None] * len(primals)
    for index, gradient in zip(floating, found, strict=True):
        out[index] = gradient
    return out


def jvp(
    function: Callable[..., Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    like: Tensor,
) -> Tensor:
    """The derivative of ``function`` along the tangents that are there, shaped ``like`` its value.

    Inside a transform this is a forward derivative. Outside it is the derivative of a vjp, which is
    linear in its cotangent: forward derivatives do not nest in plain ``torch.autograd``.
    """
    moving = [i for i, tangent in enumerate(tangents) if tangent is not None]
    chosen = [primals[i] for i in moving]
    along = [tangent for tangent in tangents if tangent is not None]

    def restricted(*values: Tensor) -> Tensor:
        everything = list(primals)
        for index, value in zip(moving, values, strict=True):
            everything[index] = value
        return function(*everything)

    if _transforms.active():
        return torch.func.jvp(restricted, tuple(chosen), tuple(along))[1]
    with torch.enable_grad():
        cotangent = torch.zeros_like(like).requires_grad_()
        pulled = vjp(restricted, chosen, cotangent)
        terms = [(p * t).sum() for p, t in zip(pulled, along, strict=True) if p is not None]
        total = torch.stack(terms).sum()
        if not total.requires_grad:
            return torch.zeros_like(like)
        return torch.autograd.grad(total, cotangent, create_graph=True, materialize_grads=True)[0]


def _functional(
    function: Callable[..., Tensor], primals: Sequence[Tensor], cotangent: Tensor
) -> Sequence[Tensor]:
    return torch.func.vjp(function, *primals)[1](cotangent)


def _plain(
    function: Callable[..., Tensor], primals: Sequence[Tensor], cotangent: Tensor
) -> Sequence[Tensor]:
    # An alias is downstream of its primal and of nothing else, so that a primal that depends on
    # another one (a solution on its parameters) contributes its partial derivative alone.
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [_alias(primal, keep) for primal in primals]
        output = function(*aliases)
        if not output.requires_grad:
            return [torch.zeros_like(primal) for primal in primals]
        return torch.autograd.grad(
            output, aliases, cotangent, create_graph=keep, materialize_grads=True
        )


def _alias(primal: Tensor, keep: bool) -> Tensor:
    if keep and primal.requires_grad:
        return primal.view_as(primal)
    return primal.detach().requires_grad_()
