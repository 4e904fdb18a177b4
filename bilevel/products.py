"""The ways to multiply by the Hessian of an objective, and by its mixed derivative."""

from __future__ import annotations

import abc
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bilevel import _autodiff, _transforms
from bilevel._autodiff import Pullback, filled, gradient, leaves_of_graph, uncompiled
from bilevel._checks import check_scalar
from bilevel._guard import Guard
from bilevel._tree import Layout, natural_scales, refuse_sparse
from bilevel.errors import InputError, ProductWarning, TransformError, outside

HVP = Literal["auto", "reverse", "forward_over_reverse", "finite_difference"]


class Objective:
    """A user's scalar function of two trees, as a function of their leaves.

    Args:
        function: ``(phi, theta, *args) -> 0-d tensor``.
        name: what the caller calls it, for messages.
        phi: layout of phi.
        theta: layout of theta.
        args: passed through.
        guard: replays the randomness, so that every evaluation sees the same.
        originals: the user's own tensors of phi and theta; a value that depends on one of them
            directly, past the arguments, is refused.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        name: str,
        phi: Layout,
        theta: Layout,
        args: Sequence[Any],
        guard: Guard,
        originals: Sequence[Tensor] = (),
    ) -> None:
        self.function, self.name, self.args, self.guard = function, name, tuple(args), guard
        self.phi, self.theta = phi, theta
        self._originals = originals

    def __call__(self, phi: Sequence[Tensor], theta: Sequence[Tensor]) -> Tensor:
        """The value, refused unless it is a 0-d floating tensor."""
        with self.guard.replay():
            value = self.function(self.phi.tree(phi), self.theta.tree(theta), *self.args)
        value = check_scalar(value, self.name)
        trees = "phi or theta" if self.phi.sizes else "theta"
        refuse_originals(value, self._originals, self.name, trees)
        return value


def refuse_originals(value: Tensor, originals: Sequence[Tensor], name: str, trees: str) -> None:
    """Refuse a value that was computed from one of the user's own tensors, past the arguments."""
    own = {id(leaf) for leaf in originals if leaf.requires_grad}
    if own and any(id(leaf) in own for leaf in (value, *leaves_of_graph(value))):
        raise InputError(
            f"{name} uses a parameter of {trees} itself, past its arguments: that part of the "
            "derivative would be lost without a word. Use what the function is handed: "
            "torch.func.functional_call(module, parameters, inputs) in place of module(inputs). If "
            "it is meant as a constant, detach it."
        )


class Products(abc.ABC):
    """First and second derivatives of an objective at one point.

    Attributes:
        value: the objective, 0-d.
        gradient: its gradient with respect to theta, flat ``[n]``.
        unused: flattening indices of theta leaves the objective does not depend on.
        name: the way the products are made, one of :data:`HVP`.
    """

    value: Tensor
    gradient: Tensor
    unused: tuple[int, ...]
    name: HVP

    @abc.abstractmethod
    def rows(self, rows: Tensor) -> Tensor:
        """``H v`` for every row v of ``[k, n]``."""

    @abc.abstractmethod
    def mixed(self, vector: Tensor) -> Sequence[Tensor | None]:
        """``(d_phi d_theta inner)' v`` for v ``[n]``, as leaves like phi.

        None where the gradient is known not to depend on the leaf at all.
        """


class KeptGraph(Products):
    """Build the graph of the gradient once; then each product is one backward through it."""

    name = "reverse"

    def __init__(
        self,
        objective: Objective,
        phi: Sequence[Tensor],
        theta: Sequence[Tensor],
        *,
        traced: bool = False,
    ) -> None:
        self._phi = phi
        with torch.enable_grad():
            with uncompiled():
                value = objective(phi, theta)
            found = gradient(value, theta, objective.name, create_graph=True)
            refuse_sparse(found, objective.name)
            whole = objective.theta.join([leaf.detach() for leaf in filled(found, theta)])
        self.value, self.gradient = value.detach(), whole
        self.unused = tuple(i for i, leaf in enumerate(found) if leaf is None)
        self._pullback = Pullback(filled(found, theta), theta, traced=traced)

    def rows(self, rows: Tensor) -> Tensor:
        return self._pullback.rows(rows)

    def mixed(self, vector: Tensor) -> Sequence[Tensor | None]:
        return self._pullback.of(vector, self._phi)


class ForwardOverReverse(Products):
    """Differentiate the gradient forward along v: nothing is kept, every product starts anew.

    Takes less memory than a kept graph, but about 3.5 times as long a product, about 9 times on a
    small network; every operation of the objective has to have a forward derivative.
    """

    name = "forward_over_reverse"

    def __init__(
        self, objective: Objective, phi: Sequence[Tensor], theta: Sequence[Tensor]
    ) -> None:
        self._objective = objective
        # Forward derivatives write into what they are given: no two entries may share memory.
        self._phi = [leaf.contiguous() for leaf in _detached(phi)]
        self._theta = [leaf.contiguous() for leaf in _detached(theta)]
        found = _first_order(objective, phi, theta, forward=True)
        self.value, self.gradient, self.unused, self._used = found

    def rows(self, rows: Tensor) -> Tensor:
        def slope(theta: list[Tensor]) -> list[Tensor]:
            return torch.func.grad(lambda leaves: self._objective(self._phi, leaves))(theta)

        join = self._objective.theta.join
        return torch.stack([join(self._push(slope, row)) for row in rows])

    def mixed(self, vector: Tensor) -> Sequence[Tensor | None]:
        def slope(theta: list[Tensor]) -> list[Tensor]:
            return torch.func.grad(lambda leaves: self._objective(leaves, theta))(self._phi)

        return _where(self._used, self._push(slope, vector))

    def _push(self, slope: Callable[[list[Tensor]], list[Tensor]], vector: Tensor) -> list[Tensor]:
        tangents = self._objective.theta.split(vector)
        with uncompiled():
            return torch.func.jvp(slope, (self._theta,), (tangents,))[1]


class FiniteDifference(Products):
    """Central differences of the gradient along v: two gradients a product, no second derivative.

    The step along v is the largest that moves no entry of theta by more than ``2 cbrt(eps)`` times
    the root mean square of its leaf (of all of theta for a leaf of zeros), which balances
    truncation against rounding; expect a relative error near 1e-9 in float64 and 1e-3 in float32.
    The first product is made at two steps; that they disagree is the one sign of a bad step, and
    warned of. The only way through kernels without a second derivative (recurrent layers of cuDNN,
    fused attention).

    Reference:
        Pearlmutter, Fast exact multiplication by the Hessian, 1994, section 2 (what it replaces);
        Shankar, Implicit training of inference network models, 2023 (which uses it).
    """

    name = "finite_difference"

    def __init__(
        self, objective: Objective, phi: Sequence[Tensor], theta: Sequence[Tensor]
    ) -> None:
        if objective.theta.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f'hvp="finite_difference" refuses {objective.theta.dtype}: a difference of two '
                "gradients has no correct digit left there. Use float32 or float64."
            )
        self._objective = objective
        self._phi, self._theta = _detached(phi), _detached(theta)
        self._flat = objective.theta.join(self._theta)
        eps = torch.finfo(objective.theta.dtype).eps
        self._reach = 2 * eps ** (1 / 3) * natural_scales(self._theta)
        self._compared = False
        self.value, self.gradient, self.unused, self._used = _first_order(objective, phi, theta)

    def rows(self, rows: Tensor) -> Tensor:
        found = torch.stack([self._difference(row, self._gradient_at) for row in rows])
        if not self._compared and found.numel():
            self._compared = True
            self._compare(rows[0], found[0])
        return found

    def mixed(self, vector: Tensor) -> Sequence[Tensor | None]:
        found = self._difference(vector, self._phi_gradient_at)
        return _where(self._used, self._objective.phi.split(found))

    def _difference(
        self, vector: Tensor, slope: Callable[[Tensor], Tensor], shrink: float = 1.0
    ) -> Tensor:
        # Scaled by its largest entry first: what is made of 1e-30 vanishes in float32.
        if not vector.numel():
            return torch.zeros_like(slope(self._flat))
        largest = vector.abs().amax()
        direction = vector / torch.where(largest > 0, largest, 1.0)
        step = shrink * (self._reach / direction.abs()).amin()  # no limit where v is zero
        step = torch.where(torch.isfinite(step), step, 1.0)
        ahead = slope(self._flat + step * direction)
        behind = slope(self._flat - step * direction)
        return (ahead - behind) * (largest / (2 * step))

    def _compare(self, vector: Tensor, found: Tensor) -> None:
        finer = self._difference(vector, self._gradient_at, shrink=0.25)
        size = torch.maximum(torch.linalg.vector_norm(found), torch.linalg.vector_norm(finer))
        gap = float(torch.linalg.vector_norm(found - finer) / torch.where(size > 0, size, 1.0))
        if gap > _WORST_GAP:
            warnings.warn(
                f"finite differences of the gradient of {self._objective.name} at two step sizes "
                f"disagree by {gap:.0%}: Hessian-vector products are that uncertain. The gradient "
                "is too rough, or theta's entries too different in scale, for this precision. Use "
                'float64, hvp="reverse", or bring theta to one scale.',
                ProductWarning,
                stacklevel=outside(),
            )

    def _gradient_at(self, flat: Tensor) -> Tensor:
        value, theta, _ = self._at(flat)
        found = gradient(value, theta, self._objective.name)
        return self._objective.theta.join(filled(found, theta))

    def _phi_gradient_at(self, flat: Tensor) -> Tensor:
        value, _, phi = self._at(flat)
        if not value.requires_grad:
            return flat.new_zeros(self._objective.phi.size)
        found = torch.autograd.grad(value, phi, materialize_grads=True)
        return self._objective.phi.join(found)

    def _at(self, flat: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        if _transforms.active():
            raise TransformError(
                f"a product by finite differences of the gradient of {self._objective.name} cannot "
                "be taken inside torch.func transforms: it differentiates by itself. Take it "
                'outside (several at once: H @ V with a column for each), or use hvp="reverse".'
            )
        # Both require grad, whichever is asked for: the objective may differentiate by itself.
        theta = [leaf.requires_grad_() for leaf in self._objective.theta.split(flat)]
        phi = [leaf.requires_grad_() for leaf in _detached(self._phi)]
        with torch.enable_grad():
            return self._objective(phi, theta), theta, phi


class Automatic(Products):
    """A kept graph, until the framework refuses to differentiate twice; then finite differences.

    The kernel without a second derivative is named in one warning.
    """

    def __init__(
        self, objective: Objective, phi: Sequence[Tensor], theta: Sequence[Tensor]
    ) -> None:
        self._point = (objective, phi, theta)
        try:
            self._products: Products = KeptGraph(*self._point)
        except RuntimeError as error:
            self._products = self._fallback(error)
        self.value, self.gradient = self._products.value, self._products.gradient
        self.unused = self._products.unused

    @property
    def name(self) -> HVP:  # type: ignore[override]
        return self._products.name

    def rows(self, rows: Tensor) -> Tensor:
        return self._retrying(lambda: self._products.rows(rows))

    def mixed(self, vector: Tensor) -> Sequence[Tensor | None]:
        return self._retrying(lambda: self._products.mixed(vector))

    def _retrying(self, product: Callable[[], Any]) -> Any:
        while True:
            try:
                return product()
            except RuntimeError as error:
                if isinstance(self._products, FiniteDifference):
                    raise
                self._products = self._fallback(error)

    def _fallback(self, error: RuntimeError) -> Products:
        objective, phi, theta = self._point
        refusal = _double_backward_refusal(error)
        if refusal is None:
            raise error
        found = FiniteDifference(objective, phi, theta)
        warnings.warn(
            f"{objective.name} cannot be differentiated twice ({refusal}); Hessian-vector "
            "products fall back to finite differences of the gradient. Use an operation with a "
            'second derivative for exact ones, or say hvp="finite_difference" to choose them.',
            ProductWarning,
            stacklevel=outside(),
        )
        return found


def products(
    hvp: HVP, objective: Objective, phi: Sequence[Tensor], theta: Sequence[Tensor]
) -> Products:
    """The products asked for, at a point whose leaves require grad."""
    kinds = {
        "auto": Automatic,
        "reverse": KeptGraph,
        "forward_over_reverse": ForwardOverReverse,
        "finite_difference": FiniteDifference,
    }
    return kinds[check_hvp(hvp)](objective, phi, theta)


def check_hvp(hvp: str) -> HVP:
    """The option, refused when unknown."""
    if hvp not in get_args(HVP):
        raise InputError(f"hvp must be one of {', '.join(get_args(HVP))}; found {hvp!r}.")
    return hvp  # type: ignore[return-value]


def _first_order(
    objective: Objective, phi: Sequence[Tensor], theta: Sequence[Tensor], *, forward: bool = False
) -> tuple[Tensor, Tensor, tuple[int, ...], tuple[bool, ...]]:
    """The value, its gradient in theta, theta leaves not used, and for phi's whether they are."""
    with torch.enable_grad():
        value = objective(phi, theta)
    if forward and _autodiff.custom_functions(value):
        _refuse_cut(objective, phi, theta)
    reached = {id(leaf) for leaf in leaves_of_graph(value)}
    found = gradient(value, theta, objective.name)
    unused = tuple(i for i, leaf in enumerate(found) if leaf is None)
    used = tuple(id(leaf) in reached for leaf in phi)
    return value.detach(), objective.theta.join(filled(found, theta)), unused, used


def _refuse_cut(objective: Objective, phi: Sequence[Tensor], theta: Sequence[Tensor]) -> None:
    """Refuse custom functions whose backward leaves autograd: forward mode takes it as constant.

    It says nothing of that; a gradient with a graph does, and is made once for it.
    """
    with torch.enable_grad(), uncompiled():  # compiled code is a custom function too
        value = objective(phi, theta)
        if _autodiff.custom_functions(value):
            gradient(value, theta, objective.name, create_graph=True)


def _where(used: Sequence[bool], leaves: Sequence[Tensor]) -> list[Tensor | None]:
    return [leaf if known else None for known, leaf in zip(used, leaves, strict=True)]


def _detached(leaves: Sequence[Tensor]) -> list[Tensor]:
    return [leaf.detach() for leaf in leaves]


# Two steps of finite differences may differ by this much before it is said.
_WORST_GAP = 0.05

_REFUSALS = (
    r"derivative for '?([^' ]+)'? is not implemented",
    r"(.*does not (?:currently )?support double backward.*)",
    r"([Dd]ouble backwards? is not supported.*)",
    r"(.*not differentiable twice.*)",
    r"(.*no autograd formula was registered.*)",
)


def _double_backward_refusal(error: RuntimeError) -> str | None:
    """What the framework refused to differentiate twice; None for any other error."""
    for pattern in _REFUSALS:
        match = re.search(pattern, str(error))
        if match:
            return match.group(1)
    return None
