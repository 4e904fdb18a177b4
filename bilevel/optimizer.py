"""``BilevelOptimizer``: inner steps on theta, one hypergradient, one step on phi, and again."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bilevel._autodiff import filled, gradient
from bilevel._checks import check_args, check_count, check_scalar
from bilevel._point import refuse_twice, usable
from bilevel._prediction import predicted
from bilevel._resume import check_fits
from bilevel._tree import Layout, Tree, check_finite, flatten
from bilevel.errors import InputError, NonFiniteError
from bilevel.problem import ImplicitProblem
from bilevel.report import HypergradientInfo
from bilevel.solution import Result, State

_VERSION = 1
_REMEMBERED = 4  # adjoints: three steps between them, the last of which fits two weights


class BilevelOptimizer:
    """Alternate descent on a bilevel problem with any two torch optimizers.

    One :meth:`step` makes ``inner_steps`` steps of the inner optimizer on theta, one hypergradient,
    and one step of the outer optimizer on phi. The first guess of each adjoint is predicted from
    the last four, as far as these met a tolerance, and is the last one otherwise; the vectors of a
    solve by :class:`bilevel.Auto` are recycled as the preconditioner of the next. Only the
    ``.grad`` of the leaves of phi and theta is used, and it is cleared afterwards.

    Args:
        problem: the objectives and how hypergradients are taken.
        outer_optimizer: holds the leaves of phi.
        inner_optimizer: holds the leaves of theta; LBFGS and its like are called with a closure.
        phi: the tree ``outer`` and ``inner`` are called with, of the leaves (parameters that
            require grad) the outer optimizer holds; None (default) is the list of them.
        theta: the same for the inner optimizer.
        inner_steps: steps on theta a call, at least 0 (default 1).
        warm_start: start each solve from the adjoints before it, and recycle the vectors of earlier
            solves (default True). This takes four vectors of the size of theta, and with
            :class:`bilevel.Auto` up to 200 more (64 MiB at most).
        reuse_state: keep the solver's factorization or preconditioner for this many calls before
            preparing it anew; 1 (default) prepares it every call.
        accumulate: hypergradients averaged before each step on phi (default 1).
        outer_max_norm: clip the norm of phi's gradient; None (default) does not.
        inner_max_norm: the same for theta's gradient.
        outer_scheduler: stepped after each step on phi; ``ReduceLROnPlateau`` on the outer value.
        inner_scheduler: stepped after each step on theta.

    Raises:
        InputError: an option does not fit; or a tree's leaves are not those of its optimizer, or it
            holds one of them twice.

    Example:
        >>> import torch, bilevel
        >>> phi, theta = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
        >>> problem = bilevel.ImplicitProblem(
        ...     outer=lambda p, t: ((t[0] - 3) ** 2).sum(),
        ...     inner=lambda p, t: ((t[0] - p[0]) ** 2).sum(),
        ... )
        >>> loop = BilevelOptimizer(
        ...     problem, torch.optim.SGD([phi], lr=0.2), torch.optim.SGD([theta], lr=0.5)
        ... )
        >>> for _ in range(50):
        ...     info = loop.step()
        >>> round(float(phi.detach()), 3)
        3.0
    """

    def __init__(
        self,
        problem: ImplicitProblem,
        outer_optimizer: torch.optim.Optimizer,
        inner_optimizer: torch.optim.Optimizer,
        *,
        phi: Tree = None,
        theta: Tree = None,
        inner_steps: int = 1,
        warm_start: bool = True,
        reuse_state: int = 1,
        accumulate: int = 1,
        outer_max_norm: float | None = None,
        inner_max_norm: float | None = None,
        outer_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        inner_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        # Anything with these two will do: another way to the hypergradient, say.
        if not all(callable(getattr(problem, name, None)) for name in ("inner", "implicit_grad")):
            raise InputError(f"problem must be a bilevel.ImplicitProblem, found {problem!r}.")
        _check_optimizer(outer_optimizer, "outer_optimizer")
        _check_optimizer(inner_optimizer, "inner_optimizer")
        if _needs_closure(outer_optimizer):
            raise InputError(
                f"outer_optimizer is a {type(outer_optimizer).__name__}, which evaluates its "
                "objective again and again; a hypergradient is taken once a step. Use SGD, Adam "
                "or the like (the inner optimizer may be of that kind)."
            )
        for name, count, least in (
            ("inner_steps", inner_steps, 0),
            ("reuse_state", reuse_state, 1),
            ("accumulate", accumulate, 1),
        ):
            check_count("BilevelOptimizer", name, count, least)
        for name, limit in (("outer_max_norm", outer_max_norm), ("inner_max_norm", inner_max_norm)):
            if limit is not None and not limit > 0:
                raise InputError(f"{name} must be above 0 or None, found {limit}.")
        self.problem = problem
        self.outer_optimizer, self.inner_optimizer = outer_optimizer, inner_optimizer
        self.outer_scheduler, self.inner_scheduler = outer_scheduler, inner_scheduler
        self.phi: Tree = _held(outer_optimizer) if phi is None else phi
        self.theta: Tree = _held(inner_optimizer) if theta is None else theta
        self._phi, self._phi_layout = _leaves(self.phi, "phi", outer_optimizer)
        self._theta, self._theta_layout = _leaves(self.theta, "theta", inner_optimizer)
        if {id(leaf) for leaf in self._phi} & {id(leaf) for leaf in self._theta}:
            raise InputError("phi and theta share a leaf; each optimizer needs leaves of its own.")
        self.inner_steps, self.warm_start = inner_steps, warm_start
        self.reuse_state, self.accumulate = reuse_state, accumulate
        self.outer_max_norm, self.inner_max_norm = outer_max_norm, inner_max_norm
        self.calls = 0
        self._adjoints: list[Tensor] = []
        self._state: State | None = None
        self._recyclable, self._solver = False, ""
        self._gathered: list[Tensor] = []
        self._pending = 0

    @torch.inference_mode(False)  # what it makes outlives the mode it was called in
    def step(
        self,
        *,
        inner_args: Sequence[Any] = (),
        outer_args: Sequence[Any] = (),
        inner_batches: Iterable[Sequence[Any]] | None = None,
    ) -> HypergradientInfo:
        """Inner steps, one hypergradient, and every ``accumulate`` calls a step on phi.

        Args:
            inner_args: passed to ``inner``, in the steps on theta and in the hypergradient.
            outer_args: passed to ``outer``.
            inner_batches: arguments of ``inner``, a tuple or list of them, for each of the steps on
                theta, if they should differ; at least ``inner_steps`` of these, and no more are
                taken from an iterator.

        Returns:
            The report of the hypergradient, as ``implicit_grad(..., return_info=True)`` gives it.

        Raises:
            InputError: an argument does not fit, or ``inner_batches`` ran out.
            NonFiniteError: an objective or a gradient is NaN or infinite. Neither phi nor its
                optimizer has moved then.
        """
        inner_args = check_args(inner_args, "inner_args")
        self._descend(inner_args, inner_batches)
        self._draw()
        solver = self._solver_now()
        kept = self._recyclable or self.calls % self.reuse_state > 0
        kept = kept and solver == self._solver  # the state of another one is of no use to it
        found, info = self.problem.implicit_grad(
            self.phi,
            self.theta,
            outer_args=outer_args,
            inner_args=inner_args,
            initial=self._guess(),
            state=self._state if kept else None,
            return_info=True,
        )
        if self.warm_start:
            adjoint = self._theta_layout.join(flatten(info.adjoint, "adjoint")[0])
            self._remember(adjoint, info.solution.result is Result.SUCCESS)
        self._recyclable = self.warm_start and info.solution.recyclable
        if self._recyclable or self.reuse_state > 1:
            self._state, self._solver = info.state, solver
        self._gather(flatten(found, "the hypergradient")[0])
        self.calls += 1
        if self._pending >= self.accumulate:
            self._step_outer(info.outer_value)
        return info

    def _solver_now(self) -> str:
        return repr(getattr(self.problem, "solver", None))

    def _draw(self) -> None:
        # A hypergradient rewinds the generators it uses. One number drawn before each keeps
        # dropout masks and samples from being the same in every call.
        torch.rand(())
        if self._theta_layout.device.type not in ("cpu", "meta"):
            torch.rand((), device=self._theta_layout.device)

    def _guess(self) -> Tree:
        if not self.warm_start or not self._adjoints:
            return None
        return self._theta_layout.unflatten(predicted(self._adjoints))

    def _remember(self, adjoint: Tensor, solved: bool) -> None:
        # What a solve left unfinished depends on its guess, and no guess may feed on guesses.
        self._adjoints = [*self._adjoints[1 - _REMEMBERED :], adjoint] if solved else [adjoint]

    def _descend(
        self, inner_args: Sequence[Any], inner_batches: Iterable[Sequence[Any]] | None
    ) -> None:
        batches = None if inner_batches is None else iter(inner_batches)
        # They require grad, as in the hypergradient: inner may differentiate in phi by itself.
        phi = self._phi_layout.tree([leaf.detach().requires_grad_() for leaf in self._phi])
        for index in range(self.inner_steps):
            args = inner_args if batches is None else next(batches, None)
            if args is None:
                raise InputError(
                    f"inner_batches ended after {index} item(s); inner_steps is {self.inner_steps}."
                )
            args = usable(check_args(args, f"inner_batches[{index}]"))
            closure = functools.partial(self._inner_closure, phi, args, index)
            if _needs_closure(self.inner_optimizer):
                value = self.inner_optimizer.step(closure)
            else:
                value = closure()
                self.inner_optimizer.step()
            _clear(self._theta)
            _tick(self.inner_scheduler, value)

    def _inner_closure(self, phi: Tree, args: Sequence[Any], index: int) -> Any:
        """The inner objective, with its gradient in ``.grad``, as torch optimizers ask for it."""
        with torch.enable_grad():
            value = check_scalar(self.problem.inner(phi, self.theta, *args), "inner")
        found = gradient(value, self._theta, "inner")
        value = value.detach()
        if not math.isfinite(value.item()):
            raise NonFiniteError(
                f"inner is {float(value)} at inner step {index}; theta has not moved in this step. "
                "Lower the inner learning rate or clip with inner_max_norm."
            )
        slope = filled(found, self._theta)
        check_finite(self.theta, slope, f"the gradient of inner at inner step {index}: theta")
        _set_gradient(self._theta, slope, self.inner_max_norm)
        return value

    def _gather(self, gradient: Sequence[Tensor]) -> None:
        pairs = zip(self._gathered, gradient, strict=True)
        self._gathered = [a + b for a, b in pairs] if self._pending else list(gradient)
        self._pending += 1

    def _step_outer(self, value: float) -> None:
        mean = [leaf / self._pending for leaf in self._gathered]
        self._gathered, self._pending = [], 0
        _set_gradient(self._phi, mean, self.outer_max_norm)
        self.outer_optimizer.step()
        _clear(self._phi)
        _tick(self.outer_scheduler, value)

    @torch.inference_mode(False)
    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to go on to the same numbers.

        Parameters, both optimizers and schedulers, the adjoint, the solver's state, gradients
        gathered so far, the counter, and the random state of the CPU and of the parameters'
        device. Tensors and plain values only: ``torch.load(..., weights_only=True)`` reads it.
        Buffers of modules and the order of the data are not the loop's: save them beside it.
        """
        device = self._theta_layout.device
        rng = {"cpu": torch.get_rng_state()}
        if device.type not in ("cpu", "meta"):
            rng["device"] = torch.get_device_module(device).get_rng_state(device)
        optional = (self.outer_scheduler, self.inner_scheduler)
        outer_scheduler, inner_scheduler = (s and s.state_dict() for s in optional)
        state = {
            "version": _VERSION,
            "calls": self.calls,
            "phi": [leaf.detach() for leaf in self._phi],
            "theta": [leaf.detach() for leaf in self._theta],
            "outer_optimizer": self.outer_optimizer.state_dict(),
            "inner_optimizer": self.inner_optimizer.state_dict(),
            "outer_scheduler": outer_scheduler,
            "inner_scheduler": inner_scheduler,
            "adjoints": self._adjoints,
            "solver_state": self._state,
            "recyclable": self._recyclable,
            "solver": self._solver,
            "gathered": self._gathered,
            "pending": self._pending,
            "rng": rng,
        }
        return copy.deepcopy(state)

    @torch.inference_mode(False)
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where :meth:`state_dict` was taken; refused whole if it does not fit.

        Raises:
            InputError: another version, other parameters, an optimizer or a scheduler of another
                kind, or a NaN or an infinity. Nothing has changed then.
        """
        found = state.get("version") if isinstance(state, dict) else type(state).__name__
        if type(found) is not int or found != _VERSION:
            raise InputError(f"state has version {found!r}; this release reads {_VERSION}.")
        before = self.state_dict()
        check_fits(state, before, self._theta_layout.size)
        try:
            self._load(copy.deepcopy(state))
        except Exception as error:
            self._load(before)
            raise InputError(
                f"state does not fit this loop; nothing was loaded: {error!r}"
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        self.outer_optimizer.load_state_dict(state["outer_optimizer"])
        self.inner_optimizer.load_state_dict(state["inner_optimizer"])
        for name in ("outer_scheduler", "inner_scheduler"):
            scheduler = getattr(self, name)
            if scheduler is not None:
                scheduler.load_state_dict(state[name])
        with torch.no_grad():
            for name, leaves in (("phi", self._phi), ("theta", self._theta)):
                for leaf, saved in zip(leaves, state[name], strict=True):
                    leaf.copy_(saved)
        device = self._theta_layout.device
        self.calls, self._pending, self._recyclable, self._solver = (
            state[name] for name in ("calls", "pending", "recyclable", "solver")
        )
        self._adjoints, self._state, self._gathered = pytree.tree_map_only(
            Tensor,
            lambda tensor: tensor.to(device),
            (state["adjoints"], state["solver_state"], state["gathered"]),
        )
        torch.set_rng_state(state["rng"]["cpu"].cpu())
        if "device" in state["rng"] and device.type != "cpu":
            torch.get_device_module(device).set_rng_state(state["rng"]["device"].cpu(), device)


def _held(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [leaf for group in optimizer.param_groups for leaf in group["params"]]


def _leaves(
    tree: Tree, argument: str, optimizer: torch.optim.Optimizer
) -> tuple[list[Tensor], Layout]:
    leaves, layout = flatten(tree, argument)
    refuse_twice(tree, argument)
    wanted, found = {id(leaf) for leaf in _held(optimizer)}, {id(leaf) for leaf in leaves}
    if wanted != found:
        raise InputError(
            f"{argument} has {len(found - wanted)} leaf/leaves its optimizer does not hold, and "
            f"the optimizer holds {len(wanted - found)} that {argument} lacks. Build it from "
            f"the very tensors of {argument} (dict(module.named_parameters()) keeps them)."
        )
    for leaf in leaves:
        if not (leaf.requires_grad and leaf.is_leaf):
            raise InputError(f"every leaf of {argument} must be a parameter that requires grad.")
        if leaf.is_inference():
            raise InputError(
                f"{argument} holds a tensor made in torch.inference_mode, which cannot be trained. "
                "Make it outside of that mode."
            )
    return leaves, layout


def _check_optimizer(optimizer: Any, name: str) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"{name} must be a torch.optim.Optimizer, found {optimizer!r}.")


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``step`` wants to evaluate the objective by itself, as LBFGS does."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _set_gradient(
    leaves: Sequence[Tensor], gradient: Sequence[Tensor], max_norm: float | None
) -> None:
    for leaf, slope in zip(leaves, gradient, strict=True):
        leaf.grad = slope
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(leaves, max_norm)


def _clear(leaves: Sequence[Tensor]) -> None:
    for leaf in leaves:
        leaf.grad = None


def _tick(scheduler: torch.optim.lr_scheduler.LRScheduler | None, value: Tensor | float) -> None:
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(float(value))
    elif scheduler is not None:
        scheduler.step()
