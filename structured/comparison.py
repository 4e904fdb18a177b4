"""What several methods with several seeds gave: one table that says who wins and by how much."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from scipy.special import stdtrit

from structured.evaluation import COLUMNS, Evaluation
from structured.search import Trial, best_trial

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

TEST = "test"
"""The part that is reported."""

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class ComparedRun:
    """One method trained with one seed.

    Args:
        method: its label in the comparison.
        seed: of the run.
        epochs: epochs trained.
        best_epoch: the epoch, counted from 1, whose weights are scored.
        seconds: of the whole training, validation included.
        epoch_seconds: the median over the epochs of the last phase: what training costs once
            pretraining is over.
        evaluation: the scores.
        predict_seconds: to predict 1000 test rows: probabilities, before any decoder. None in
            records that are older than this figure.
        earlier_phase: the phase that the scored weights are of, where it is not the method's last
            one: of its pretraining, if nothing after it was better on validation. Else empty.
    """

    method: str
    seed: int
    epochs: int
    best_epoch: int
    seconds: float
    epoch_seconds: float
    evaluation: Evaluation
    predict_seconds: float | None = None
    earlier_phase: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` undoes it."""
        return asdict(self) | {"evaluation": self.evaluation.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ComparedRun:
        """Return what `to_dict` was called on."""
        evaluation = Evaluation.from_dict(values["evaluation"])
        return cls(**{**values, "evaluation": evaluation})


@dataclass(frozen=True)
class Difference:
    """How far a method is from the baseline under one decoder, seed by seed.

    Args:
        mean: of the differences in example-F1, above 0 if the method is better.
        margin: half the width of its 95 % interval (Student's t over seeds); None for one seed.
        seeds: how many there are: those that both methods have.
    """

    mean: float
    margin: float | None
    seeds: int

    @property
    def verdict(self) -> str:
        """Ahead or behind if the interval leaves out 0, else no clear difference."""
        if self.margin is None or abs(self.mean) <= self.margin:
            return "no clear difference"
        return "ahead" if self.mean > 0 else "behind"


@dataclass(frozen=True)
class Kept:
    """What earlier calls left in a folder that the last one did not ask for: it is in no table.

    Args:
        methods: label -> the method, as plain values, of labels that the comparison does not have.
        runs: of these, or of other seeds.
        search: trials of these, or of higher numbers.
    """

    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    runs: tuple[ComparedRun, ...] = ()
    search: tuple[Trial, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` undoes it."""
        return asdict(self) | {"runs": tuple(run.to_dict() for run in self.runs)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Kept:
        """Return what `to_dict` was called on."""
        return cls(
            values.get("methods", {}),
            tuple(ComparedRun.from_dict(run) for run in values.get("runs", ())),
            tuple(Trial.from_dict(trial) for trial in values.get("search", ())),
        )


@dataclass(frozen=True)
class Comparison:
    """What was compared and how it went.

    Args:
        data: the name of the data set.
        split: the name of the split.
        sizes: "features", "labels", and the rows of each part.
        methods: label -> the method, as plain values; the first is the baseline. Once a search is
            over, the method that it chose.
        model: the sizes of the models, as plain values.
        training: the settings, as plain values.
        seeds: of the runs.
        runs: those that are done.
        command: what a shell has to run to repeat it, or nothing.
        machine: what the times were taken on.
        trials: how many candidates of each method the search on validation data has; 1 is none.
        search: the trials that are done.
        control: the label of the method that learned from shuffled labels; "" if there is none.
        failed: a line for each run whose training diverged.
        kept: what else is in the folder.
    """

    data: str
    split: str
    sizes: Mapping[str, int]
    methods: Mapping[str, Mapping[str, Any]]
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    seeds: Sequence[int]
    runs: tuple[ComparedRun, ...] = ()
    command: str = ""
    machine: Mapping[str, Any] | None = None
    trials: int = 1
    search: tuple[Trial, ...] = ()
    control: str = ""
    failed: tuple[str, ...] = ()
    kept: Kept = field(default_factory=Kept)

    @property
    def baseline(self) -> str:
        """The label of the method that the others are measured against: the first."""
        return next(iter(self.methods))

    def scores(self, method: str, decoder: str, part: str = TEST) -> dict[int, float]:
        """Return seed -> example-F1, from 0 to 1, of the runs that are done.

        Args:
            method: its label.
            decoder: its name in the tables, such as "expected F1".
            part: "test", or "validation".
        """
        return {
            run.seed: run.evaluation.scores[part][decoder].example_f1
            for run in self.runs
            if run.method == method
        }

    def difference(self, method: str, decoder: str, part: str = TEST) -> Difference | None:
        """Compare a method with the baseline over the seeds that both have; None without any.

        Args:
            method: its label.
            decoder: its name in the tables, such as "expected F1".
            part: "test", or "validation".
        """
        ours, theirs = (self.scores(name, decoder, part) for name in (method, self.baseline))
        gaps = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if not gaps:
            return None
        if len(gaps) == 1:
            return Difference(gaps[0], None, 1)
        quantile = float(stdtrit(len(gaps) - 1, (1 + _CONFIDENCE) / 2))
        margin = quantile * statistics.stdev(gaps) / len(gaps) ** 0.5
        return Difference(statistics.mean(gaps), margin, len(gaps))

    def summary(self) -> list[dict[str, Any]]:
        """Return a record per method: means and deviations over seeds, and differences."""
        records = []
        for method in self.methods:
            runs = [run for run in self.runs if run.method == method]
            record: dict[str, Any] = {"method": method, "seeds": [run.seed for run in runs]}
            if runs:
                record["epoch_seconds"] = statistics.median(run.epoch_seconds for run in runs)
                record["best_epoch"] = statistics.mean(run.best_epoch for run in runs)
                record["predict_seconds"] = _median_if_any(run.predict_seconds for run in runs)
            for decoder in COLUMNS:
                values = list(self.scores(method, decoder).values())
                if not values:
                    continue
                record[decoder] = {
                    "mean": statistics.mean(values),
                    "deviation": statistics.stdev(values) if len(values) > 1 else None,
                }
                difference = self.difference(method, decoder)
                if method != self.baseline and difference is not None:
                    verdict = _A_CONTROL if method == self.control else difference.verdict
                    against = {**asdict(difference), "verdict": verdict}
                    record[decoder][f"against {self.baseline}"] = against
            records.append(record)
        return records

    def verdicts(self, decoders: Sequence[str] = COLUMNS) -> list[str]:
        """Say for every method but the baseline, under every decoder, who wins, a line each.

        Args:
            decoders: their names in the tables; by default all.
        """
        lines = []
        for method in self.methods:
            for decoder in decoders:
                found = self.difference(method, decoder)
                if method == self.baseline or found is None:
                    continue
                spread = (
                    "one seed, which says nothing about the spread"
                    if found.margin is None
                    else f"± {100 * found.margin:.2f}, 95 % over {found.seeds} seeds"
                )
                lines.append(
                    f"{decoder}: {method} against {self.baseline} {100 * found.mean:+.2f} "
                    f"({spread}): {_A_CONTROL if method == self.control else found.verdict}"
                )
        return lines

    def notes(self) -> list[str]:
        """Say what the table does not, a line each.

        Which runs in the folder are not in it, which methods' means are over other seeds than those
        of others, and which methods' scored weights are not of the last phase.
        """
        lines = []
        if self.kept.runs:
            runs = ", ".join(f"{run.method} seed {run.seed}" for run in self.kept.runs)
            lines.append(f"Not asked for, and so kept but not in the table: {runs}")
        by_seeds: dict[tuple[int, ...], list[str]] = {}
        for method in self.methods:
            seeds = tuple(sorted(run.seed for run in self.runs if run.method == method))
            if seeds:
                by_seeds.setdefault(seeds, []).append(method)
        if len(by_seeds) > 1:
            groups = (
                f"{', '.join(map(str, seeds))} of {', '.join(methods)}"
                for seeds, methods in by_seeds.items()
            )
            lines.append(
                f"The means are over different seeds ({'; '.join(groups)}); a difference is over "
                "those that both methods have"
            )
        for method in self.methods:
            runs = [run for run in self.runs if run.method == method]
            phases = dict.fromkeys(run.earlier_phase for run in runs if run.earlier_phase)
            if phases:
                count = sum(bool(run.earlier_phase) for run in runs)
                lines.append(
                    f"{method}: {count} of {len(runs)} seeds kept the weights of an earlier phase "
                    f"({', '.join(phases)}), as nothing after it was better on validation"
                )
        return lines

    def chosen(self, method: str) -> Trial | None:
        """Return the trial whose options the runs of a method have; None without a search.

        Args:
            method: its label.
        """
        trials = [trial for trial in self.search if trial.label == method]
        return best_trial(trials, self.training["monitor"])

    def choices(self) -> list[str]:
        """Say for every method that was searched what was chosen, a line each."""
        lines = []
        for method in self.methods:
            trials = [trial for trial in self.search if trial.label == method]
            best = self.chosen(method)
            if best is None or best.value is None:
                continue
            options = ", ".join(f"{path}={value}" for path, value in best.options.items())
            fewer = "" if len(trials) >= self.trials else " that there are"
            lines.append(
                f"{method}: {options or 'nothing to vary'} (trial {best.number} of {len(trials)}"
                f"{fewer}, validation {self.training['monitor']} {best.value:.4f})"
            )
        return lines

    def table(self) -> Table:
        """Return a table to print with `rich`: example-F1 in percent, mean and deviation."""
        from rich.table import Table
        from rich.text import Text  # for names, in which brackets are no markup

        parts = ", ".join(f"{rows} {part}" for part, rows in self.sizes.items())
        title = (
            f"{self.data}, split {self.split!r}\n{parts}\nexample-F1 on test in percent, mean ± "
            f"deviation over {len(self.seeds)} seeds; decoders fitted on validation"
        )
        table = Table(
            title=Text(title, style="table.title"),
            title_justify="left",
            caption=Text(self.command, style="table.caption") if self.command else None,
            caption_justify="left",
        )
        table.add_column("method")
        for heading in _HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        records = [record for record in self.summary() if record["seeds"]]
        rivals = [record for record in records if record["method"] != self.control]
        best = {
            decoder: max((record[decoder]["mean"] for record in rivals), default=0.0)
            for decoder in COLUMNS
        }
        for record in records:
            rival = record["method"] != self.control
            cells = [
                _cell(record[decoder], best[decoder] if rival else None) for decoder in COLUMNS
            ]
            predicting = record["predict_seconds"]
            done = len(record["seeds"])
            table.add_row(
                Text(record["method"] + (f" ({done} done)" if done < len(self.seeds) else "")),
                *cells,
                f"{record['epoch_seconds']:.2f}",
                "" if predicting is None else f"{1000 * predicting:.1f}",
            )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with the summary; `from_dict` undoes it."""
        runs = tuple(run.to_dict() for run in self.runs)
        derived = {"summary": self.summary(), "verdicts": self.verdicts()}
        return asdict(self) | {"runs": runs, "kept": self.kept.to_dict()} | derived

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """Return what `to_dict` was called on."""
        fields = {key: value for key, value in values.items() if key not in _DERIVED}
        return cls(
            **{
                **fields,
                "seeds": tuple(values["seeds"]),
                "runs": tuple(ComparedRun.from_dict(run) for run in values["runs"]),
                "search": tuple(Trial.from_dict(trial) for trial in values.get("search", ())),
                "failed": tuple(values.get("failed", ())),
                "kept": Kept.from_dict(values.get("kept", {})),
            }
        )


_DERIVED = ("summary", "verdicts")
_A_CONTROL = "a control"
# In two lines, so that four decoders and the times fit beside each other.
_HEADINGS = (
    *(name.replace(" ", "\n", 1) for name in COLUMNS),
    "s /\nepoch",
    "µs /\nrow",
)


def _median_if_any(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _cell(score: Mapping[str, Any], best: float | None) -> Text:
    from rich.text import Text

    mean, deviation = score["mean"], score["deviation"]
    text = f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
    return Text(text, style="bold" if mean == best else "")
