"""A progress bar with the figures that matter."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm

SHOWN: Mapping[str, str] = {
    "cross_entropy": "CE",
    "primary": "primary",
    "energy_gap": "gap",
    "inner_gradient": "inner gradient",
    "direct_norm": "direct",
    "implicit_norm": "implicit",
}
"""Figure of a step -> how the bar calls it; what a method does not report is left out."""


class ProgressBar:
    """One bar over all steps of a run, on the standard error stream.

    Args:
        title: in front of the bar.
        steps: of the whole run, if it is not stopped early.
        done: steps done in an earlier part of the run.
        show: True shows it, False does not; None (default) does on a terminal and nowhere else, so
            that logs and pipes stay clean.
        stream: where it goes.

    Example:
        >>> with ProgressBar("cross-entropy", steps=10, show=False) as bar:
        ...     bar.step(1, "training", {"cross_entropy": 0.7})
    """

    def __init__(
        self,
        title: str,
        steps: int,
        done: int = 0,
        show: bool | None = None,
        stream: TextIO | None = None,
    ) -> None:
        out: TextIO = sys.stderr if stream is None else stream
        self._validation: list[str] = []
        self._bar = tqdm(
            desc=title,
            total=steps,
            initial=done,
            unit="step",
            disable=not (out.isatty() if show is None else show),
            file=out,
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar:10}| {elapsed}<{remaining}{postfix}",
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, epoch: int, phase: str, figures: Mapping[str, float]) -> None:
        """Move on by a step and show its figures, and the last ones on validation."""
        shown = [f"{name} {figures[key]:.3g}" for key, name in SHOWN.items() if key in figures]
        text = ", ".join([f"epoch {epoch} ({phase})", *self._validation, *shown])
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def epoch(self, text: str) -> None:
        """Show this before the figures of every step from now on."""
        self._validation = [text]

    def say(self, text: str) -> bool:
        """Print a line above the bar; return False, with nothing printed, if none is shown."""
        if self._bar.disable:
            return False
        self._bar.write(text, file=self._bar.fp)
        return True


class RunsBar:
    """One bar over several runs that are trained at once, on the standard error stream.

    Args:
        total: how many runs there are.
        show: as in `ProgressBar`.
        stream: where it goes.

    Example:
        >>> with RunsBar(2, show=False) as bar:
        ...     bar.done("cross-entropy, seed 0: 0.81")
    """

    def __init__(self, total: int, show: bool | None = None, stream: TextIO | None = None) -> None:
        out: TextIO = sys.stderr if stream is None else stream
        self._bar = tqdm(
            desc="runs",
            total=total,
            disable=not (out.isatty() if show is None else show),
            file=out,
            dynamic_ncols=True,
            bar_format="{desc} {n_fmt}/{total_fmt}|{bar:20}| {elapsed}<{remaining}{postfix}",
        )

    def __enter__(self) -> RunsBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def done(self, text: str) -> None:
        """Count a run and show what it gave until the next one ends."""
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()


def say_above(text: str) -> None:
    """Print a line on the standard error stream, above the bars that are shown there."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
