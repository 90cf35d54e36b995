"""A hub of a test's own: one repository over HTTP, as the pinned huggingface_hub asks for it.

It answers the listing of a repository and its files, and can refuse, hold back or drop them.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "c0ffee" + "0" * 34
_INFO = re.compile(r"/api/models/([\w-]+/[\w-]+)(?:/revision/main)?")
_TREE = re.compile(r"/api/models/([\w-]+/[\w-]+)/tree/\w+")
_FILE = re.compile(rf"/([\w-]+/[\w-]+)/resolve/{COMMIT}/(.+)")


class SmallHub:
    """What the repository `name` answers; the fields may be changed while it serves."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.gated = False
        self.broken: str | None = None
        """A file whose connection is dropped in the middle."""
        self.sent: list[str] = []
        """The files that were asked for, one entry a request."""

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The address at which it answers, until the block ends."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()


def _handler(hub: SmallHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Nothing."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = urlsplit(self.path).path
            if (asked := _INFO.fullmatch(path)) and asked[1] == hub.name:
                siblings = [{"rfilename": n, "size": len(c)} for n, c in hub.files.items()]
                self._json({"id": hub.name, "sha": COMMIT, "siblings": siblings})
            elif (asked := _TREE.fullmatch(path)) and asked[1] == hub.name:
                self._json(
                    [
                        {"type": "file", "path": n, "size": len(c), "oid": _etag(c)}
                        for n, c in hub.files.items()
                    ]
                )
            elif (asked := _FILE.fullmatch(path)) and asked[1] == hub.name:
                self._file(asked[2], body=body)
            else:
                self._refuse(404, "RepoNotFound")

        def _file(self, name: str, *, body: bool) -> None:
            if hub.gated:
                return self._refuse(403, "GatedRepo")
            if name not in hub.files:
                return self._refuse(404, "EntryNotFound")
            content = hub.files[name]
            start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{_etag(content)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.end_headers()
            if body:
                hub.sent.append(name)
                end = len(content) // 2 if name == hub.broken else len(content)
                self.wfile.write(content[start:end])
                self.close_connection = name == hub.broken
            return None

        def _json(self, value: object) -> None:
            text = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
