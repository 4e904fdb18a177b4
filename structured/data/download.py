"""Fetching a public file into a folder, whole and checked, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
import requests
from tqdm import tqdm

from structured.data.sources import Source
from structured.errors import DownloadError

_CHUNK = 1 << 16  # bytes
_TIMEOUT = 30.0  # seconds without an answer


def fetch(source: Source, folder: Path, *, progress: bool = True) -> Path:
    """Return the path of a public file in a folder, downloading it if it is not there.

    A file that is there is used if its SHA-256 is right, and else replaced. A download is kept
    under another name until its SHA-256 is known to be right, and deleted if it is not.

    Args:
        source: The file.
        folder: Where it is kept; made if it does not exist.
        progress: Show a bar on the standard error stream.

    Raises:
        DownloadError: The server cannot be reached or refuses, the transfer is cut, or what came
            is not what was expected. The message says which, and what to do.
        OSError: The folder cannot be written.
    """
    elsewhere = f"or fetch it by other means and put it in {folder}"
    try:
        with _quiet_pooch():
            path = pooch.retrieve(
                source.url,
                known_hash=f"sha256:{source.sha256}",
                fname=source.file,
                path=folder,
                downloader=_Transfer(source, progress),
            )
    except requests.exceptions.HTTPError as error:
        raise DownloadError(f"the server refuses: {error}; try again later, {elsewhere}") from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise DownloadError(_cut(source)) from error
    except requests.exceptions.RequestException as error:
        raise DownloadError(
            f"{source.url}: no connection ({type(error).__name__}); check the network and try "
            f"again, {elsewhere}"
        ) from error
    except ValueError as error:
        raise DownloadError(
            f"{source.url}: what came does not have the SHA-256 {source.sha256[:12]}...; nothing "
            "was kept. It was changed at its source or on its way: do not use it"
        ) from error
    return Path(path)


@dataclass(frozen=True)
class _Transfer:
    """A pooch downloader that stops at the known size and knows a cut transfer."""

    source: Source
    progress: bool

    def __call__(
        self, fname: str, action: Any, pooch: Any, *, check_only: bool | None = None
    ) -> None:
        """Write what is at the address `fname` to the path `action`, as pooch names them."""
        received = 0
        with (
            requests.get(fname, stream=True, timeout=_TIMEOUT) as response,
            open(action, "wb") as file,
            tqdm(
                total=self.source.bytes,
                desc=self.source.file,
                unit="B",
                unit_scale=True,
                disable=not self.progress,
            ) as bar,
        ):
            response.raise_for_status()
            for chunk in response.iter_content(_CHUNK):
                received += len(chunk)
                if received > self.source.bytes:
                    raise DownloadError(
                        f"{fname}: more than the expected {self.source.bytes} bytes came; nothing "
                        "was kept"
                    )
                file.write(chunk)
                bar.update(len(chunk))
        if received < self.source.bytes:
            raise DownloadError(_cut(self.source))


def _cut(source: Source) -> str:
    return f"{source.url}: the transfer was cut short; nothing was kept, try again"


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Keep pooch from reporting each file: the bar does."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
