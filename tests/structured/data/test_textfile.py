"""Lines of plain and compressed files, and where a damaged one breaks off."""

from __future__ import annotations

import gzip

import pytest

from structured.data.textfile import read_lines
from structured.errors import DataError

TEXT = "".join(f"line {number} of some text\n" for number in range(1, 2001))


def test_plain_and_gzip_files_hold_the_same_lines(tmp_path):
    plain, packed = tmp_path / "a.txt", tmp_path / "a.gz"
    plain.write_text(TEXT)
    packed.write_bytes(gzip.compress(TEXT.encode()))
    assert read_lines(plain) == read_lines(packed) == TEXT.splitlines()


def test_members_of_a_gzip_file_are_joined(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"one\ntw") + gzip.compress(b"o\n"))
    assert read_lines(path) == ["one", "two"]


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b"", []),
        (b"one", ["one"]),
        (b"\xef\xbb\xbfone\r\n\r\ntwo\n", ["one", "", "two"]),
        (b"line\xe2\x80\xa8separator\x0bkept\n", ["line\u2028separator\x0bkept"]),
    ],
)
def test_only_newlines_end_lines(tmp_path, raw, lines):
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    assert read_lines(path) == lines


def test_a_cut_gzip_file_names_the_line_it_broke_off_in(tmp_path):
    path = tmp_path / "a.gz"
    packed = gzip.compress(TEXT.encode())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="the gzip file is cut in this line") as caught:
        read_lines(path)
    assert caught.value.file == str(path)
    assert caught.value.line is not None
    assert 1 < caught.value.line < 2000


def test_a_gzip_file_cut_in_its_checksum_is_cut(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(TEXT.encode())[:-2])
    with pytest.raises(DataError, match="cut"):
        read_lines(path)


@pytest.mark.parametrize("rest", [b"\x1f", b"garbage", gzip.compress(b"two\n")[1:], b"\0\0x"])
def test_what_follows_gzip_data_and_is_none_is_refused(tmp_path, rest):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"one\n") + rest)
    found = len(rest.lstrip(b"\0"))
    with pytest.raises(DataError, match=f"followed by other data, bytes: {found};") as caught:
        read_lines(path)
    assert (caught.value.file, caught.value.line) == (str(path), 2)


def test_zeros_after_gzip_data_fill_a_block_and_are_passed_over(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"one\n") + bytes(7) + gzip.compress(b"two\n") + bytes(3))
    assert read_lines(path) == ["one", "two"]


@pytest.mark.parametrize(("text", "line"), [(b"1 1:2\r2 1:1\r", 1), (b"one\r\ntwo\r\r\n", 2)])
def test_a_carriage_return_that_ends_no_line_is_refused_with_its_line(tmp_path, text, line):
    path = tmp_path / "a.txt"
    path.write_bytes(text)
    with pytest.raises(DataError, match=r"a carriage return .* convert the file") as caught:
        read_lines(path)
    assert caught.value.line == line


def test_a_gzip_file_with_a_wrong_checksum_is_damaged(tmp_path):
    path = tmp_path / "a.gz"
    packed = bytearray(gzip.compress(TEXT.encode()))
    packed[-6] ^= 1
    path.write_bytes(packed)
    with pytest.raises(DataError, match="damaged gzip data"):
        read_lines(path)


def test_a_byte_that_is_not_utf8_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nmanzan\xed\n")
    with pytest.raises(DataError, match=r"a\.txt:3: byte 0xed is not UTF-8"):
        read_lines(path)
