"""A hub of a test's own over HTTP: a model, and datasets beside it, as the pinned huggingface_hub
and datasets ask for them.

It answers the listings of repositories and their files, and can refuse, hold back or drop them.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
REVISIONS = ("main", "v1", COMMIT)
_ID = r"(?P<id>[\w-]+/[\w-]+)"
_ABOUT = re.compile(
    rf"/api/(?P<kind>models|datasets)/{_ID}"
    r"(?:/(?P<what>revision|tree|paths-info)/(?P<revision>\w+)(?:/(?P<path>.*))?)?"
)
_FILE = re.compile(rf"/(?P<kind>datasets/)?{_ID}/resolve/(?P<revision>\w+)/(?P<path>.+)")


class Repository:
    """The files of a repository; the fields may be changed while the hub serves."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.gated = False
        self.broken: str | None = None
        """A file whose connection is dropped in the middle."""

    def listing(self, folder: str, *, recursive: bool) -> list[dict[str, object]]:
        """What lies in a folder, as the hub lists it."""
        found: dict[str, dict[str, object]] = {}
        for name, content in self.files.items():
            inside = PurePosixPath(name)
            if folder and not inside.is_relative_to(folder):
                continue
            parts = inside.relative_to(folder).parts if folder else inside.parts
            if len(parts) == 1 or recursive:
                found[name] = {"type": "file", "path": name, "size": len(content),
                               "oid": _etag(content)}  # fmt: skip
            if len(parts) > 1:
                where = str(PurePosixPath(folder, parts[0]))
                found[where] = {"type": "directory", "path": where, "oid": "0" * 40}
        return list(found.values())


class SmallHub(Repository):
    """What the model repository `name` answers, and the datasets beside it."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        files = {path.name: path.read_bytes() for path in folder.iterdir()} if folder else {}
        super().__init__(files)
        self.name = name
        self.datasets: dict[str, Repository] = {}
        self.sent: list[str] = []
        """The files that were asked for, one entry a request."""
        self.requests: list[str] = []
        """Every request: method and path."""

    def repository(self, kind: str | None, name: str) -> Repository | None:
        """A repository by its kind and its id."""
        if kind and kind.startswith("datasets"):
            return self.datasets.get(name)
        return self if name == self.name else None

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

        def do_POST(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            posted = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            address = urlsplit(self.path)
            path = unquote(address.path)
            hub.requests.append(f"{self.command} {path}")
            asked = _ABOUT.fullmatch(path) or _FILE.fullmatch(path)
            repository = hub.repository(asked["kind"], asked["id"]) if asked else None
            if asked is None or repository is None:
                return self._refuse(404, "RepoNotFound")
            if asked["revision"] not in (None, *REVISIONS):
                return self._refuse(404, "RevisionNotFound")
            if asked.re is _FILE:
                return self._file(repository, asked["path"], body=body)
            if asked["what"] == "tree":
                recursive = "recursive=true" in address.query.lower()
                return self._json(repository.listing(asked["path"] or "", recursive=recursive))
            if asked["what"] == "paths-info":
                wanted = json.loads(posted)["paths"]
                every = repository.listing("", recursive=True)
                return self._json([entry for entry in every if entry["path"] in wanted])
            siblings = [{"rfilename": n, "size": len(c)} for n, c in repository.files.items()]
            return self._json({"id": asked["id"], "sha": COMMIT, "siblings": siblings})

        def _file(self, repository: Repository, name: str, *, body: bool) -> None:
            if repository.gated:
                return self._refuse(403, "GatedRepo")
            if name not in repository.files:
                return self._refuse(404, "EntryNotFound")
            content = repository.files[name]
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
                end = len(content) // 2 if name == repository.broken else len(content)
                self.wfile.write(content[start:end])
                self.close_connection = name == repository.broken
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
            if code in ("EntryNotFound", "RevisionNotFound"):
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
