"""A hypergradient by a fixed budget of one solver, all of it in compiled calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bilevel._autodiff import filled
from bilevel._compiling.programs import Call, First, Functions, Program
from bilevel._guard import Guard, without_autocast
from bilevel._system import Start, System, arrived, figures, largest, scaled, warm_start
from bilevel.curvature import HessianOperator
from bilevel.operators import LinearOperator, damped
from bilevel.products import KeptGraph
from bilevel.solution import State
from bilevel.solvers.base import Stepwise, column

# Steps a compiled call takes at once, and the size up to which calls cost more than what they do.
_BLOCK = 5
_SMALL = 20_000


@dataclass(frozen=True)
class Solved:
    """What a compiled solve hands back; see :func:`bilevel._system.figures` for the table."""

    first: First
    table: Tensor
    adjoint: Tensor
    implicit: list[Tensor]
    iterations: Tensor
    tridiagonal: tuple[Tensor, Tensor] | None


class FixedSolve:
    """A hypergradient by a fixed budget of one solver, all of it in compiled calls.

    Args:
        functions: the objectives.
        solver: one that takes all its steps.
        damping: added to the Hessian.
        call: an example of the arguments.
        guard: of the functions.
        known: tensors the functions may use besides, by id.
    """

    def __init__(
        self,
        functions: Functions,
        solver: Stepwise,
        damping: float,
        call: Call,
        guard: Guard,
        known: Mapping[int, Tensor],
    ) -> None:
        self._functions, self._solver, self._damping = functions, solver, damping
        self._call, self._guard = call, guard
        self._steps = int(solver.steps(call.theta_layout.size))
        small = call.theta_layout.size <= _SMALL and self._steps >= 2 * _BLOCK
        self._block = _BLOCK if small else 1
        first, _, system, operator, start = self._begin(call)
        rhs = system.rhs if start is None else start.remaining
        carry = solver.begin(rhs, system.target, call.state)
        with torch.no_grad():
            versions = {name: tensor._version for name, tensor in carry.items()}
            after, record = solver.advance(operator, carry, call.state)
            stacked = [torch.stack([item]) for item in record]
            outcome = solver.finish(after, stacked, call.state, True)
        # What every step hands on as it found it is computed once.
        self._names = tuple(
            name
            for name, tensor in carry.items()
            if after[name] is not tensor or tensor._version != versions[name]
        )
        self._logical = [item.dtype is torch.bool for item in record]
        self._bridged = outcome.tridiagonal is not None
        self._last = outcome.residual is None  # a product for the true residual at the end
        history = first.slope.new_zeros(self._steps, len(record))
        width = len(self._names) + 1
        groups = {
            "static": 4 + len(call.phi) + len(self._names),
            "step": width,
            "block": width,
            "finish": 3 + len(call.phi) + 2 * self._bridged,
        }
        self._history = (self._steps, len(record))
        moving = [*(after[name] for name in self._names), history]
        self.program = Program(self._traced, moving, call.to_trace(), groups, known)
        # The programs stand for themselves now: what they were made from may go.
        del self._call, self._guard, self._functions

    def __call__(self, call: Call) -> Solved:
        """Run it."""
        own, shared = self.program.start(call.tensors())
        first = First.of(own[: 4 + len(call.phi)])
        moving = own[4 + len(call.phi) :]
        moving.append(first.slope.new_zeros(self._history))
        blocks = self._steps // self._block if self._block > 1 else 0
        for _ in range(blocks):
            moving = self.program.run("block", moving, shared)
        for _ in range(self._steps - blocks * self._block):
            moving = self.program.run("step", moving, shared)
        table, adjoint, iterations, *rest = self.program.run("finish", moving, shared)
        implicit, last = rest[: len(call.phi)], rest[len(call.phi) :]
        tridiagonal = (last[0], last[1]) if last else None
        return Solved(first, table, adjoint, implicit, iterations, tridiagonal)

    def products(self, call: Call) -> int:
        """How many of them one run takes."""
        return self._steps + (call.initial is not None) + self._last

    def _begin(self, call: Call) -> tuple[First, KeptGraph, System, LinearOperator, Start | None]:
        first, kept = self._functions.derivatives(call, self._guard)
        operator = damped(HessianOperator(kept, call.theta_layout), self._damping)
        with torch.no_grad(), without_autocast(call.theta_layout.device):
            rows = first.slope.unsqueeze(0)
            system = scaled(rows, largest(rows), self._solver)
            start = None if call.initial is None else warm_start(operator, system, call.initial)
        return first, kept, system, operator, start

    def _traced(self, *tensors: Tensor) -> list[Tensor]:
        count = len(self._names)
        moving, history = tensors[:count], tensors[count]
        call = self._call.with_tensors(tensors[count + 1 :])
        first, kept, system, operator, start = self._begin(call)
        with torch.no_grad(), without_autocast(call.theta_layout.device):
            rhs = system.rhs if start is None else start.remaining
            begun = self._solver.begin(rhs, system.target, call.state)
            carry = {**begun, **dict(zip(self._names, moving, strict=True))}
            step = self._advance(operator, carry, history, call.state, 1)
            block = step
            if self._block > 1:
                block = self._advance(operator, carry, history, call.state, self._block)
            columns = zip(history.unsqueeze(-1).unbind(1), self._logical, strict=True)
            records = [column > 0.5 if logical else column for column, logical in columns]
            outcome = self._solver.finish(carry, records, call.state, True)
            progress = arrived(operator, system, start, outcome)
            table = figures(system, progress, outcome.curvature)
            answer = (progress.value * column(system.scale)).squeeze(0)
        mixed = filled(kept.mixed(answer), call.phi)
        own = [*first.tensors(), *(begun[name] for name in self._names)]
        end = [table, answer, outcome.iterations, *(-leaf for leaf in mixed)]
        return [*own, *step, *block, *end, *(outcome.tridiagonal or ())]

    def _advance(
        self,
        operator: LinearOperator,
        carry: Mapping[str, Tensor],
        history: Tensor,
        state: State,
        steps: int,
    ) -> list[Tensor]:
        now = {**carry, **{name: carry[name].clone() for name in self._names}}
        for _ in range(steps):
            now, record = self._solver.advance(operator, now, state)
            latest = torch.stack([item[0].to(history.dtype) for item in record])
            history = torch.cat([history[1:], latest.unsqueeze(0)])
        return [*(now[name] for name in self._names), history]
