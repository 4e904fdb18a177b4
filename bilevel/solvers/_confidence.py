"""When to rely on what earlier solves have left, and when to do without."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from bilevel.solution import State

_FEWEST = 5  # steps that a solve may take in any case
_LONGEST_REST = 63
_NAMES = ("taken", "folds", "failures", "rest")


@dataclass(frozen=True)
class Confidence:
    """What became of solves with and without recycling; part of the state they pass on.

    The vectors of one operator help with another only where the two are alike. Along a smooth
    path they are; from one minibatch to the next they may not be, and then it costs steps. So a
    solve with it may take the steps of the last one without, and in proportion more where the
    residual has further to fall. One that needs more goes on without, and so do the next 1, 3, 7,
    ... solves: what is useless is tried ever more seldom.

    Attributes:
        taken: steps of the last solve without; infinite before one.
        folds: factors of e by which the residual had to fall in it.
        failures: how many solves with it have needed more, since the last that did not.
        rest: how many solves are still to do without.
    """

    taken: float = math.inf
    folds: float = 1.0
    failures: int = 0
    rest: int = 0

    @classmethod
    def of(cls, state: State) -> Confidence:
        """What a state says of it; a state that says nothing is believed."""
        if not state.keys() >= set(_NAMES):
            return cls()
        taken, folds, failures, rest = (float(state[name]) for name in _NAMES)
        counts = 0 <= failures < math.inf and 0 <= rest < math.inf
        if not (taken > 0 and folds > 0 and counts):
            return cls()
        return cls(taken, folds, int(failures), int(rest))

    def state(self) -> State:
        """The same as tensors, on the CPU: to read them should wait for nothing."""
        return {name: torch.tensor(getattr(self, name)) for name in _NAMES}

    def steps(self, folds: float) -> float:
        """How many steps a solve that recycles may take, for ``folds`` factors of e."""
        return max(self.taken * max(folds / self.folds, 1.0), _FEWEST)

    def with_it(self, failed: bool) -> Confidence:
        """After a solve that relied on it."""
        if not failed:
            return replace(self, failures=0)
        failures = self.failures + 1
        return replace(self, failures=failures, rest=min(2**failures - 1, _LONGEST_REST))

    def without(self, steps: int, folds: float) -> Confidence:
        """After a solve that did without."""
        rest = max(self.rest - 1, 0)
        if not steps or not folds > 0:
            return replace(self, rest=rest)
        return replace(self, taken=float(steps), folds=folds, rest=rest)
