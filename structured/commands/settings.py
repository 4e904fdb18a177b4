"""From the options of a command to data, sizes and settings, and back from a run's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structured.commands.failures import UsageError, bad_usage
from structured.commands.inputs import file_format, is_file, open_data, with_usable_split
from structured.commands.options import Inputs, Reading, Settings, Sizes
from structured.errors import CheckpointError, DataError
from structured.presets import BASE, setting

if TYPE_CHECKING:
    from structured.data import MultiLabelData
    from structured.models import ModelConfig
    from structured.train_config import TrainConfig

SETTING = "setting.json"
"""The file of a run that says where its data are, so that they can be opened again."""

_PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class Source:
    """Where data come from and how they are split.

    Args:
        data: A known name or a file.
        split: The name of the split.
        validation_fraction: The share of the train part set aside if there is no validation part.
        reading: The fields of `Reading` as the data were read with them, as plain values.
        n_features: Of the data.
        feature_names: Of the data, or none.
        fingerprints: `structured.fingerprint.data_fingerprint` of each part; those that are known.
    """

    data: str
    split: str
    validation_fraction: float
    reading: Mapping[str, Any]
    n_features: int
    feature_names: tuple[str, ...]
    fingerprints: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write it into the folder of a run."""
        from structured._atomic import write_atomically

        text = json.dumps(asdict(self), indent=2)
        write_atomically(folder / SETTING, f"{text}\n".encode())

    @classmethod
    def read(cls, folder: Path) -> Source:
        """Return what `write` wrote.

        Raises:
            CheckpointError: The folder holds no run of the command line.
        """
        try:
            values = json.loads((folder / SETTING).read_bytes())
            if "fingerprints" not in values:
                values["fingerprints"] = _described(folder)
            return cls(**{**values, "feature_names": tuple(values["feature_names"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: {_no_run(folder)}") from error

    def parts(
        self, *, download: bool = True
    ) -> tuple[MultiLabelData, MultiLabelData, MultiLabelData]:
        """Open the data again; return the parts train, validation and test.

        Raises:
            DataError: They cannot be opened, or are not those that the run was trained on. A split
                that is drawn shares the rows of a changed file out anew, so that rows of the
                training part could come to stand in the test part.
        """
        from structured.data import train_validation_test

        labels = self.reading["labels"]
        reading = Reading(**{**self.reading, "labels": None if labels is None else Path(labels)})
        data, split = with_usable_split(
            open_data(self.data, reading, download=download), self.split
        )
        parts = train_validation_test(data, split, fraction=self.validation_fraction)
        for part, found in _fingerprints(parts).items():
            if self.fingerprints.get(part, found) != found:
                raise DataError(
                    f"{self.data} has changed since the run was trained: its {part} part has other "
                    "rows or labels; put the data back as they were, or score all rows of a file "
                    "with --data FILE"
                )
        return parts


@dataclass(frozen=True)
class Prepared:
    """What a training command needs.

    Args:
        source: Where the data come from.
        parts: Train, validation and test.
        model: The sizes.
        config: The settings.
    """

    source: Source
    parts: tuple[MultiLabelData, MultiLabelData, MultiLabelData]
    model: ModelConfig
    config: TrainConfig


def prepare(
    seed: int, inputs: Inputs, settings: Settings, sizes: Sizes, reading: Reading
) -> Prepared:
    """Open the data, make the configurations and set the threads, for `train` or `compare`.

    Args:
        seed: Of the run, or of the first one.
        inputs: The data and their split.
        settings: None stands for the default of the data set, as in `sizes`.
        sizes: Of the network and of the energy.
        reading: What the files of the data do not say.

    Raises:
        DataError: The data cannot be used.
        UsageError: A size or a setting does not fit.
    """
    import torch

    from structured.data import train_validation_test
    from structured.models import ModelConfig
    from structured.train_config import TrainConfig

    name, fraction = inputs.data, inputs.validation_fraction
    if not 0 < fraction < 1:
        raise UsageError(
            f"--validation-fraction must be between 0 and 1; found {fraction:g}, wanted a share "
            "such as 0.2"
        )
    threads = _chosen("machine", settings, name)["threads"]
    if threads is not None:
        torch.set_num_threads(threads)
    with bad_usage():
        model = ModelConfig.from_dict(_chosen("model", sizes, name))
        config = TrainConfig.from_dict({**_chosen("training", settings, name), "seed": seed})
        config.torch_device()
    data = open_data(name, reading, download=inputs.download)
    data, split = with_usable_split(data, inputs.split)
    parts = train_validation_test(data, split, fraction=fraction)
    source = Source(
        # The command that opens them again may run elsewhere.
        data=str(Path(name).resolve()) if is_file(name) else name,
        split=split,
        validation_fraction=fraction,
        reading=_as_read(data, name, reading),
        n_features=data.n_features,
        feature_names=data.feature_names,
        fingerprints=_fingerprints(parts),
    )
    return Prepared(source, parts, model, config)


def _fingerprints(parts: Iterable[MultiLabelData]) -> dict[str, str]:
    """Those of the three parts, by their names."""
    from structured.fingerprint import data_fingerprint

    return dict(zip(_PARTS, map(data_fingerprint, parts), strict=True))


def _described(folder: Path) -> dict[str, str]:
    """The fingerprints that every run writes down; not that of labels shuffled for a control."""
    from structured.control import CONTROL
    from structured.run_folder import read_description

    parts = read_description(folder)["data"]
    return {part: about["sha256"] for part, about in parts.items() if CONTROL not in about["title"]}


def _as_read(data: MultiLabelData, name: str, reading: Reading) -> dict[str, Any]:
    """The options as plain values, with what was found where a LIBSVM file was left to itself.

    Another file, read alone, may look as if it counted from elsewhere.
    """
    if file_format(Path(name)) == "libsvm":
        reading = replace(
            reading,
            n_features=data.n_features,
            n_labels=data.n_labels,
            features_from=data.meta["features_from"],
            labels_from=data.meta["labels_from"],
        )
    return {
        key: str(value.resolve()) if isinstance(value, Path) else value
        for key, value in asdict(reading).items()
    }


def _no_run(folder: Path, most: int = 5) -> str:
    """Why a folder is not that of a run, and what is: a comparison has its runs deeper within."""
    deeper = (file.parent for file in folder.glob(f"*/*/{SETTING}"))
    runs = sorted(str(place.relative_to(folder)) for place in deeper)
    if not runs or (folder / SETTING).exists():
        return (
            "holds no finished run of `structured train` or `structured compare` "
            f"({SETTING} is not there or damaged)"
        )
    more = f" and {len(runs) - most} more" if len(runs) > most else ""
    return (
        f"is the folder of a comparison; name one of its runs, such as {folder / runs[0]}; it has "
        f"{', '.join(runs[:most])}{more}"
    )


def claim(folder: Path, resume: bool, holds: str) -> None:
    """Refuse a folder that is taken, unless its run is to go on.

    Args:
        folder: Where the run or the comparison is to be.
        resume: Whether to go on.
        holds: The file that shows that the folder is taken.

    Raises:
        UsageError: It is taken.
    """
    if not resume and (folder / holds).exists():
        raise UsageError(
            f"{folder} holds {holds} already; add --resume to go on with it, or name another "
            "folder with --output"
        )


def _chosen(part: str, given: Settings | Sizes, data: str) -> dict[str, Any]:
    """What was given of a part of `BASE`, with the defaults of the data set for the rest."""
    values = {name: getattr(given, name) for name in BASE[part]}
    for name, value in values.items():
        if value is None:
            values[name] = setting(part, name, data)
        elif value == [0]:  # of layers: a layer of no units stands for no layer
            values[name] = []
    return values
