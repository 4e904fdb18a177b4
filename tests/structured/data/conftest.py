"""A web server on this machine for the download tests, with the ways a transfer can fail."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from structured.data.sources import Source


@dataclass
class Site:
    """What the server holds and how it behaves: each path -> the bytes sent.

    Args:
        address: Where it listens.
        files: Path -> content.
        promised: Path -> the Content-Length sent, if it is not the true one.
        asked: The paths asked for so far.
    """

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    promised: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def source(self, file: str, content: bytes | str, *, dataset: str = "toy") -> Source:
        """Offer a file, and return the entry that describes it."""
        raw = content.encode() if isinstance(content, str) else content
        self.files[f"/{file}"] = raw
        digest = hashlib.sha256(raw).hexdigest()
        return Source(dataset, file, f"{self.address}/{file}", len(raw), digest)


class Handler(BaseHTTPRequestHandler):
    def __init__(self, site: Site, *arguments) -> None:
        self.site = site
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.site.asked.append(self.path)
        if self.path not in self.site.files:
            self.send_error(404)
            return
        content = self.site.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(self.site.promised.get(self.path, len(content))))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: the tests read the standard error stream."""


@pytest.fixture
def site() -> Iterator[Site]:
    """A running site without files; stopped at the end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    site = Site(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = partial(Handler, site)  # type: ignore[assignment]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_folders_of_the_user(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A test sees the data of this machine only if it is marked `data`."""
    if request.node.get_closest_marker("data") is None:
        monkeypatch.delenv("STRUCTURED_DATA", raising=False)
    monkeypatch.delenv("STRUCTURED_CACHE", raising=False)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
