"""Fetching files from a server on this machine: right, wrong, cut, refused and gone."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import pytest

from structured.data.download import fetch
from structured.data.sources import public_sources
from structured.errors import DownloadError, StructuredError

CONTENT = b"0123456789" * 30_000


def left_in(folder) -> list[str]:
    return sorted(
        os.path.join(where, name) for where, _, names in os.walk(folder) for name in names
    )


def test_a_file_is_fetched_once(site, tmp_path):
    source = site.source("a.arff", CONTENT)
    path = fetch(source, tmp_path / "new" / "folder", progress=False)
    assert path == tmp_path / "new" / "folder" / "a.arff"
    assert path.read_bytes() == CONTENT
    assert fetch(source, path.parent, progress=False) == path
    assert site.asked == ["/a.arff"]
    assert left_in(tmp_path) == [str(path)]


def test_a_file_that_changed_on_disk_is_fetched_again(site, tmp_path):
    source = site.source("a.arff", CONTENT)
    (tmp_path / "a.arff").write_bytes(CONTENT[:-1])
    assert fetch(source, tmp_path, progress=False).read_bytes() == CONTENT
    assert site.asked == ["/a.arff"]


def test_a_bar_is_shown_on_request_and_nothing_otherwise(site, tmp_path, capfd):
    source = site.source("a.arff", CONTENT)
    fetch(source, tmp_path / "quiet", progress=False)
    assert capfd.readouterr() == ("", "")
    fetch(source, tmp_path / "shown", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "a.arff" in err
    assert "100%" in err
    assert "300k/300k" in err


def test_a_wrong_hash_leaves_nothing(site, tmp_path):
    source = replace(site.source("a.arff", CONTENT), sha256="0" * 64)
    with pytest.raises(DownloadError, match=r"does not have the SHA-256 000000000000\.\.\."):
        fetch(source, tmp_path, progress=False)
    assert left_in(tmp_path) == []


def test_a_wrong_hash_does_not_touch_the_older_file(site, tmp_path):
    (tmp_path / "a.arff").write_bytes(b"older")
    source = replace(site.source("a.arff", CONTENT), sha256="0" * 64)
    with pytest.raises(DownloadError):
        fetch(source, tmp_path, progress=False)
    assert (tmp_path / "a.arff").read_bytes() == b"older"
    assert left_in(tmp_path) == [str(tmp_path / "a.arff")]


def test_a_transfer_that_breaks_off_is_cut_and_leaves_nothing(site, tmp_path):
    source = site.source("a.arff", CONTENT)
    site.files["/a.arff"] = CONTENT[:150_000]
    site.promised["/a.arff"] = len(CONTENT)
    with pytest.raises(DownloadError, match="the transfer was cut short; nothing was kept"):
        fetch(source, tmp_path, progress=False)
    assert left_in(tmp_path) == []


def test_a_server_that_promises_less_than_the_file_is_cut_too(site, tmp_path):
    source = site.source("a.arff", CONTENT)
    site.files["/a.arff"] = CONTENT[:150_000]
    with pytest.raises(DownloadError, match="the transfer was cut short"):
        fetch(source, tmp_path, progress=False)
    assert left_in(tmp_path) == []


def test_a_server_that_sends_more_than_the_file_is_stopped(site, tmp_path):
    source = site.source("a.arff", CONTENT)
    site.files["/a.arff"] = CONTENT * 3
    with pytest.raises(DownloadError, match="more than the expected 300000 bytes"):
        fetch(source, tmp_path, progress=False)
    assert left_in(tmp_path) == []


def test_a_cut_transfer_is_followed_by_a_whole_one(site, tmp_path):
    source = site.source("a.arff", CONTENT)
    site.files["/a.arff"] = CONTENT[:10]
    with pytest.raises(DownloadError):
        fetch(source, tmp_path, progress=False)
    site.files["/a.arff"] = CONTENT
    assert fetch(source, tmp_path, progress=False).read_bytes() == CONTENT


def test_a_refusal_says_what_the_server_said(site, tmp_path):
    source = site.source("a.arff", CONTENT)
    del site.files["/a.arff"]
    with pytest.raises(DownloadError, match="the server refuses: 404") as caught:
        fetch(source, tmp_path, progress=False)
    assert isinstance(caught.value, StructuredError)
    assert isinstance(caught.value, OSError)
    assert left_in(tmp_path) == []


def test_a_server_that_is_gone_is_no_connection(site, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = replace(site.source("a.arff", CONTENT), url=f"http://127.0.0.1:{port}/a.arff")
    with pytest.raises(DownloadError, match=r"no connection .*check the network") as caught:
        fetch(source, tmp_path, progress=False)
    assert f"put it in {tmp_path}" in str(caught.value)
    assert left_in(tmp_path) == []


def test_the_public_files_are_pinned_and_described():
    sources = public_sources()
    assert {source.dataset for source in sources} == {
        "bibtex", "birds", "cal500", "delicious", "emotions", "scene", "yeast",
    }  # fmt: skip
    for source in sources:
        assert source.url.startswith("https://")
        assert source.url.endswith(f"/{source.file}")
        assert source.bytes > 0
        assert len(source.sha256) == 64
        assert int(source.sha256, 16) >= 0
