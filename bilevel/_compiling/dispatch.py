"""Compiled hypergradients: which program serves which call, and when none may."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bilevel._checks import check_args
from bilevel._compiling.audit import Audit, check_agrees
from bilevel._compiling.fingerprint import Fingerprint, Unseen, carried, code_of, describe
from bilevel._compiling.fixed import FixedSolve
from bilevel._compiling.graphs import Refused, refusal
from bilevel._compiling.programs import (
    HERE,
    Call,
    CompiledProducts,
    First,
    Functions,
    Program,
    as_plain,
    derivatives,
    stand_in,
    usable,
)
from bilevel._guard import Guard, without_autocast
from bilevel._point import Arguments
from bilevel._system import extremes_of, verdict
from bilevel._tree import check_same_kind, flatten
from bilevel.curvature import HessianOperator
from bilevel.errors import BilevelError, CompileWarning, outside
from bilevel.linear import OnFailure, report, solve_rows
from bilevel.operators import damped
from bilevel.preconditioners import Preconditioner
from bilevel.report import HypergradientInfo, hypergradient_info, name_negative_curvature
from bilevel.solution import Solution
from bilevel.solvers import Auto, Exact, Solver
from bilevel.solvers.base import Stepwise

# Programs kept, the least recently used dropped first; and programs made for one pair of functions
# and never used again, before it is plain that what they depend on changes too often.
_MOST = 16
_MOST_FOR_ONE = 8

# Up to this size a dense matrix is made by products with all its columns at once.
_DENSE = 128


@dataclass(frozen=True)
class Options:
    """What a compiled hypergradient is asked for; see :class:`bilevel.ImplicitProblem`."""

    outer: Callable[..., Tensor]
    inner: Callable[..., Tensor]
    solver: Solver
    damping: float
    on_failure: OnFailure

    @property
    def name(self) -> str:
        """Both functions, for messages."""
        return f"outer ({describe(self.outer)}) or inner ({describe(self.inner)})"

    @property
    def identity(self) -> tuple[Any, Any]:
        """What stays the same of both functions when they are made anew."""
        return (code_of(self.outer), code_of(self.inner))

    @property
    def functions(self) -> Functions:
        return Functions(self.outer, self.inner)


@dataclass
class _Entry:
    """One kind of call: its program, or none where it was refused."""

    fingerprint: Fingerprint
    program: Program | FixedSolve | None
    functions: tuple[Any, Any]
    uses: int = 0

    @property
    def seconds(self) -> float:
        program = self.program
        if program is None:
            return 0.0
        return program.seconds if isinstance(program, Program) else program.program.seconds

    def due(self) -> bool:
        """Whether the next use should be looked at: uses 1, 2, 4, 8 and so on are."""
        return (self.uses + 1) & self.uses == 0


_entries: OrderedDict[Any, _Entry] = OrderedDict()
_made: Counter[tuple[Any, Any]] = Counter()
_said: OrderedDict[tuple[Any, str], None] = OrderedDict()


@dataclass(frozen=True)
class _Found:
    gradient: list[Tensor]
    info: HypergradientInfo | None


class _Odd(Exception):
    """Numbers that the plain way has an error or a special case for."""


def forget() -> None:
    """Drop all programs and what they hold."""
    _entries.clear()
    _made.clear()
    _said.clear()


def hypergradient(options: Options, given: Arguments, plain: Callable[[], Any]) -> Any:
    """A hypergradient by a compiled program, or by ``plain()`` where there is none (yet)."""
    try:
        call, key, _ = _identified(options, given)
    except (Unseen, Refused) as error:
        _say(options, str(error))
        return plain()
    entry = _entries.get(key)
    if entry is None:
        # All that the plain way refuses, it refuses now; and its answer checks the program.
        return _first(options, given, plain)
    _entries.move_to_end(key)
    if entry.program is None:
        return plain()
    before = entry.seconds
    audit = Audit.of(options.functions, call) if entry.due() else None
    try:
        with torch.no_grad(), without_autocast(call.theta_layout.device):
            found = _run(options, entry, call, given.return_info, before, audit)
    except _Odd:
        return plain()
    except BilevelError:
        raise
    except (Refused, RuntimeError) as error:
        entry.program = None
        _say(options, _reason(error, "fails when compiled"))
        return plain()
    entry.uses += 1
    if entry.uses == 1:
        _made[entry.functions] -= 1
    return _handed(call, found, given.return_info)


def _handed(call: Call, found: _Found, return_info: bool) -> Any:
    tree = call.phi_layout.tree(found.gradient)
    return (tree, found.info) if return_info else tree


def _identified(options: Options, given: Arguments) -> tuple[Call, Any, Fingerprint]:
    phi_leaves, phi_layout = flatten(given.phi, "phi")
    theta_leaves, theta_layout = flatten(given.theta, "theta")
    check_same_kind(theta_layout, "theta", phi_layout, "phi")
    both = (
        check_args(given.outer_args, "outer_args"),
        check_args(given.inner_args, "inner_args"),
    )
    leaves, spec = pytree.tree_flatten(both)
    guess = None
    if given.initial is not None:
        guess = theta_layout.join(theta_layout.matching_leaves(given.initial, "initial", "theta"))
        guess = as_plain(guess).unsqueeze(0)
    if given.state is not None and not isinstance(given.state, dict):
        raise Refused("has a state that is no dict")
    tensors = usable([leaf for leaf in leaves if isinstance(leaf, Tensor)])
    others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    roots = [options.outer, options.inner, options.solver, others, list(map(carried, tensors))]
    try:
        fingerprint = Fingerprint.of(roots)
        about = fingerprint.about(tensors)
    except Unseen:
        raise
    except Exception as error:  # of an attribute or a class of the user's
        raise refusal("holds an object that fails when it is looked into", error) from error
    call = Call(
        phi_layout,
        theta_layout,
        [as_plain(leaf) for leaf in phi_leaves],
        [as_plain(leaf) for leaf in theta_leaves],
        # Where identity matters it is compared, so that the tensors themselves can be traced.
        tensors if fingerprint.by_identity else [stand_in(leaf) for leaf in tensors],
        [HERE if isinstance(leaf, Tensor) else leaf for leaf in leaves],
        spec,
        guess,
        dict(given.state or {}),
        _is_fixed(options.solver, bool(given.state)),
    )
    device = theta_layout.device.type
    surroundings = (
        torch.get_default_dtype(),
        torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and torch.get_autocast_dtype(device),
    )
    form = (call.form(), about)
    key = (form, options.damping, options.on_failure, surroundings, tuple(fingerprint.tokens))
    return call, key, fingerprint


def _first(options: Options, given: Arguments, plain: Callable[[], Any]) -> Any:
    result = plain()
    try:
        # Only now: the functions may have imported a module, or kept what they computed.
        call, key, fingerprint = _identified(options, given)
    except (Unseen, Refused) as error:
        _say(options, str(error))
        return result
    if key in _entries:
        return result
    entry = _Entry(fingerprint, None, options.identity)
    try:
        found = _made_anew(options, call, entry, given.return_info)
        plain_gradient = result[0] if given.return_info else result
        leaves = call.phi_layout.matching_leaves(plain_gradient, "found", "phi")
        check_agrees(call.phi_layout, found.gradient, call.phi_layout.join(leaves))
        # The program's answer, so that a run taken up again later goes on with the same bits.
        result = _handed(call, found, given.return_info)
    except _Odd:
        return result  # another call may do better
    except Exception as error:
        # Whatever the compiler trips over, the answer is there already.
        entry.program = None
        _say(options, _reason(error, "cannot be compiled"))
    _entries[key] = entry
    if len(_entries) > _MOST:
        _entries.popitem(last=False)
    return result


def _made_anew(options: Options, call: Call, entry: _Entry, return_info: bool) -> _Found:
    """Make a program, and run it once."""
    if _made[entry.functions] >= _MOST_FOR_ONE:
        raise Refused(
            f"came with shapes, settings or objects of another kind {_MOST_FOR_ONE} times; a "
            "program is made for each"
        )
    _made[entry.functions] += 1
    device = call.theta_layout.device
    guard = Guard([options.outer, options.inner], call.arguments(), device)
    with torch.no_grad(), without_autocast(device):
        entry.program = _program(options, call, guard, entry.fingerprint.tensors)
        return _run(options, entry, call, return_info, 0.0, quiet=True)


def _program(options: Options, call: Call, guard: Guard, known: Any) -> Program | FixedSolve:
    functions, solver = options.functions, options.solver
    if call.solves:
        assert isinstance(solver, Stepwise)
        return FixedSolve(functions, solver, options.damping, call, guard, known)
    return derivatives(functions, call, guard, _batch(solver, call), known)


def _is_fixed(solver: Solver, prepared: bool) -> bool:
    """Whether all of a solve can be compiled: nothing to prepare, and no number to look at."""
    if not isinstance(solver, Stepwise) or not solver.fixed:
        return False
    preconditioner = getattr(solver, "preconditioner", None)
    if preconditioner is not None and not isinstance(preconditioner, Preconditioner):
        return False
    return prepared or not solver.prepares


def _batch(solver: Solver, call: Call) -> int:
    dense = isinstance(solver, Auto | Exact) and call.theta_layout.size <= _DENSE
    return max(1, call.theta_layout.size) if dense else 1


def _run(
    options: Options,
    entry: _Entry,
    call: Call,
    return_info: bool,
    before: float,
    audit: Audit | None = None,
    quiet: bool = False,
) -> _Found:
    # The plain way names the leaf that holds a NaN.
    given = [*call.phi, *call.theta, *([] if call.initial is None else [call.initial])]
    if not math.isfinite(torch.stack([leaf.sum() for leaf in given]).sum().item()):
        raise _Odd
    on_failure: OnFailure = "ignore" if quiet else options.on_failure
    hvp = "reverse"
    if isinstance(entry.program, FixedSolve):
        solved = entry.program(call)
        first, implicit, adjoint = solved.first, solved.implicit, solved.adjoint
        table = solved.table.tolist()
        if not all(math.isfinite(x) for x in table[0][:5]) or not table[0][3] > 0:
            raise _Odd
        ritz = None
        if return_info and solved.tridiagonal is not None:
            ritz = extremes_of(solved.tridiagonal, solved.iterations)
        solution = verdict(
            adjoint.unsqueeze(0),
            table,
            False,
            options.solver.steps(call.theta_layout.size),
            options.solver,
            entry.program.products(call),
            ritz,
            dict(call.state),
        )
        if not solution.result.ok:
            report(solution, options.solver, on_failure)
    else:
        assert entry.program is not None
        first, solution, implicit = _by_products(options, entry.program, call, return_info, quiet)
        adjoint = solution.value.squeeze(0)
    gradient = [d + i for d, i in zip(first.direct, implicit, strict=True)]
    total = call.phi_layout.join(gradient).sum() + first.outer_value + first.inner_value
    if not math.isfinite(total.item()):
        raise _Odd
    if audit is not None:
        audit.compare(first)
    if not quiet:
        name_negative_curvature(solution, options.damping, on_failure)
    if not return_info:
        return _Found(gradient, None)
    info = hypergradient_info(
        call.phi_layout,
        call.theta_layout,
        first.outer_value,
        first.direct,
        implicit,
        adjoint,
        first.gradient,
        hvp,
        solution,
    )
    return _Found(gradient, dataclasses.replace(info, compile_seconds=entry.seconds - before))


def _by_products(
    options: Options, program: Program, call: Call, return_info: bool, quiet: bool
) -> tuple[First, Solution, list[Tensor]]:
    made = CompiledProducts(program, call, _batch(options.solver, call))
    first = made.first
    if not math.isfinite((first.slope.sum() + first.gradient.sum()).item()):
        raise _Odd
    operator = damped(HessianOperator(made, call.theta_layout), options.damping)
    solution = solve_rows(
        operator,
        first.slope.unsqueeze(0),
        options.solver,
        call.initial,
        call.state or None,
        "ignore" if quiet else options.on_failure,
        full=return_info,
    )
    mixed = made.mixed(solution.value.squeeze(0))
    return first, solution, [-leaf for leaf in mixed if leaf is not None]


def _reason(error: Exception, clause: str) -> str:
    return str(error if isinstance(error, Refused) else refusal(clause, error))


def _say(options: Options, reason: str) -> None:
    """Warn, once for every reason."""
    key = (options.identity, reason)
    if key in _said:
        return
    _said[key] = None
    if len(_said) > 16 * _MOST:
        _said.popitem(last=False)
    warnings.warn(
        f"compile=True: {options.name} {reason}. It is computed operation by operation instead; "
        "this is said once.",
        CompileWarning,
        stacklevel=outside(),
    )
