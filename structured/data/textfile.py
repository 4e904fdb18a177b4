"""Text files as numbered lines, plain or gzip, with errors that name file and line."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from structured.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP = 16 + zlib.MAX_WBITS


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    r"""Return the lines of a UTF-8 file, without their ends; line k is entry k - 1.

    A file that starts like gzip is decompressed whatever its name says.

    Args:
        path: The file.

    Raises:
        DataError: The gzip stream is cut, damaged or followed by something else, the text is not
            UTF-8, or a carriage return stands alone; with the line reached.
        OSError: The file cannot be opened.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "two.txt")
        ...     _ = path.write_bytes(b"first\r\nsecond\n")
        ...     read_lines(path)
        ['first', 'second']
    """
    raw = Path(path).read_bytes()
    if raw.startswith(_GZIP_MAGIC):
        raw = _gunzip(raw, path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"byte {raw[error.start]:#04x} is not UTF-8; convert the file to UTF-8", path, line
        ) from error
    text = text.replace("\r\n", "\n")
    if "\r" in text:
        line = text.count("\n", 0, text.index("\r")) + 1
        raise DataError(
            "a carriage return (CR) without a line feed (LF); lines end with LF or CR LF, convert "
            "the file",
            path,
            line,
        )
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return lines


def _gunzip(raw: bytes, path: str | os.PathLike[str]) -> bytes:
    """All members of a gzip file. `gzip.decompress` could not say how far it came."""
    text = bytearray()
    while raw:
        if not raw.startswith(_GZIP_MAGIC):
            line = text.count(b"\n") + 1
            raise DataError(
                f"the gzip data of the lines before are followed by other data, bytes: {len(raw)}; "
                "fetch the file again",
                path,
                line,
            )
        member = zlib.decompressobj(_GZIP)
        try:
            text += member.decompress(raw)
        except zlib.error as error:
            line = text.count(b"\n") + 1
            raise DataError(
                f"damaged gzip data after this line ({error}); fetch the file again", path, line
            ) from error
        if not member.eof:
            line = text.count(b"\n") + 1
            raise DataError("the gzip file is cut in this line; fetch it again", path, line)
        raw = member.unused_data.lstrip(b"\0")  # which some tools fill the last block with
    return bytes(text)
