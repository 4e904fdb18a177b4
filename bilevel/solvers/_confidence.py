"""When to rely on what earlier solves have learned, and when to do without."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from bilevel.solution import State

_FEWEST = 5  # steps that a solve may take in any case
_LONGEST_REST = 63


@dataclass(frozen=True)
class Confidence:
    """What became of solves with and without what was learned; part of the state they pass on.

    What is learned of one operator helps with another only where the two are alike. Along a smooth
    path they are; from one minibatch to the next they may not be, and then it costs steps. So a
    solve with it may take the steps that one without would have taken. One that needs more goes on
    without, and so do the next 1, 3, 7, ... solves: what is useless is tried ever more seldom.

    Attributes:
        pace: steps for a factor e of the residual, in the last solve without; infinite before one.
        failures: how many solves with it have needed more, since the last that did not.
        rest: how many solves are still to do without.
    """

    pace: float = math.inf
    failures: int = 0
    rest: int = 0

    @classmethod
    def of(cls, state: State) -> Confidence:
        """What a state says of it; a state that says nothing is believed."""
        found = cls()
        if "pace" not in state:
            return found
        pace, failures, rest = (state[name].item() for name in ("pace", "failures", "rest"))
        return cls(float(pace), int(failures), int(rest))

    def state(self) -> State:
        """The same as tensors, on the CPU: to read them should wait for nothing."""
        return {
            "pace": torch.tensor(self.pace, dtype=torch.float64),
            "failures": torch.tensor(self.failures),
            "rest": torch.tensor(self.rest),
        }

    def steps(self, folds: float) -> float:
        """How many steps a solve with what was learned may take, for ``folds`` factors of e."""
        return max(math.ceil(self.pace * folds), _FEWEST) if self.pace < math.inf else math.inf

    def with_it(self, failed: bool) -> Confidence:
        """After a solve that relied on it."""
        if not failed:
            return replace(self, failures=0)
        failures = self.failures + 1
        return replace(self, failures=failures, rest=min(2**failures - 1, _LONGEST_REST))

    def without(self, steps: int, folds: float) -> Confidence:
        """After a solve that did without."""
        pace = steps / folds if steps and folds > 0 else self.pace
        return replace(self, pace=pace, rest=max(self.rest - 1, 0))
