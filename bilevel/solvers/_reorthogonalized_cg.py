"""Conjugate gradients with full reorthogonalization, whose vectors a next solve may recycle."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bilevel.operators import LinearOperator
from bilevel.preconditioners import precondition
from bilevel.solution import State
from bilevel.solvers._recycling import recycled
from bilevel.solvers.base import Carry, Outcome, Stepwise, column
from bilevel.solvers.cg import CG

_ENTRIES = 2**22  # of remembered residuals: 16 MiB in single precision, 32 MiB in double
_FEWEST = 32  # residuals; fewer have hardly any effect


@dataclass(frozen=True)
class ReorthogonalizedCG(Stepwise):
    """CG whose residuals are made orthogonal to all earlier ones, in the preconditioner.

    As long as there is room for them: once it is full, plain CG goes on, as to take out the early
    residuals alone would take out what CG has come back to. The vectors of a single right-hand side
    become the state of a next solve.

    Args:
        cg: without a preconditioner, or with the one that :func:`recycled` makes the state of.
    """

    cg: CG

    def tolerances(self, dtype: torch.dtype) -> tuple[float | None, float]:
        return self.cg.tolerances(dtype)

    def steps(self, size: int) -> int:
        return self.cg.steps(size)

    def begin(self, rhs: Tensor, target: Tensor, state: State) -> Carry:
        k, n = rhs.shape
        carry = self.cg.begin(rhs, target, state)
        room = min(_ENTRIES // rhs.numel(), n)
        memory = rhs.new_empty(k, min(room, self.steps(n)) if room >= _FEWEST else 0, n)
        # Without a preconditioner both are the same vectors.
        duals = torch.empty_like(memory) if self.cg.preconditioner else memory
        z = carry["p"].clone() if self.cg.preconditioner else carry["r"]
        kept = {"memory": memory, "duals": duals, "basis": memory[:, :0], "scale": carry["zero"]}
        return {**carry, **kept, "z": z}

    def advance(
        self, operator: LinearOperator, carry: Carry, state: State
    ) -> tuple[Carry, tuple[Tensor, ...]]:
        memory, duals, count = carry["memory"], carry["duals"], carry["basis"].shape[1]
        keeps = count < memory.shape[1]
        if keeps:
            # A row that has arrived stands still: to store its residual would be to take it out
            # of itself.
            scale = torch.where(carry["active"], carry["rz"].rsqrt(), 0.0)
            torch.mul(carry["r"], column(scale), out=memory[:, count])
            if duals is not memory:
                torch.mul(carry["z"], column(scale), out=duals[:, count])
            carry = {**carry, "scale": torch.where(carry["active"], scale, carry["scale"])}
            count += 1
        carry, record = self.cg.descended(operator, carry)
        r = carry["r"]
        if keeps:
            seen = torch.bmm(r.unsqueeze(1), duals[:, :count].mT)
            r.sub_(torch.bmm(seen, memory[:, :count]).squeeze(1))
        z = precondition(self.cg.preconditioner, state, r)
        carry, beta = self.cg.turned(carry, z)
        return {**carry, "z": z, "basis": memory[:, :count]}, (*record, beta)

    def finish(
        self, carry: Carry, records: Sequence[Tensor], state: State, symmetric: bool
    ) -> Outcome:
        outcome = self.cg.finish(carry, records, state, symmetric)
        *_, active, alpha, beta = records
        r = carry["r"]
        precise = r.dtype in (torch.float32, torch.float64) and r.device.type != "mps"
        if len(r) != 1 or not precise:  # the state is made with sums in double precision
            return outcome
        recycle = functools.partial(_recycle, carry, active[:, 0], alpha[:, 0], beta[:, 0], state)
        return replace(outcome, recycle=recycle)


def _recycle(carry: Carry, active: Tensor, alpha: Tensor, beta: Tensor, state: State) -> State:
    """What a next solve may start from, after one with a single right-hand side."""
    memory, duals = carry["memory"], carry["duals"]
    steps, stored = int((alpha > 0).sum()), carry["basis"].shape[1]
    refused = stored > steps and bool(active[steps])  # a step begun and not taken: its residual
    if stored >= steps and not refused:
        count = steps
        last = carry["r"][0] * carry["scale"][0]
    else:
        # The one after the last step is the last stored, or the rest was let go.
        count = min(stored - 1, steps)
        last = memory[0, count] * beta[count - 1].sqrt() if count > 0 else memory[0, :0]
    if count < 1:
        return dict(state)
    return recycled(memory[0, :count], duals[0, :count], alpha[:count], beta[:count], last, state)
