"""A hub of one's own: an HTTP server of the few calls that huggingface_hub makes for a download."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """repos: folder by id. cut: file -> bytes after which its next answer breaks off. asked: the
    paths and ranges of all files that were fetched."""

    def __init__(self, repos: dict[str, Path]) -> None:
        self.repos, self.cut = repos, dict[str, int]()
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    def info(self, repo: str) -> dict[str, Any]:
        files = sorted(path.name for path in self.repos[repo].iterdir())
        return {
            "id": repo, "modelId": repo, "sha": COMMIT, "private": False, "tags": [],
            "downloads": 0, "siblings": [{"rfilename": name} for name in files],
        }  # fmt: skip

    def tree(self, repo: str) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
            for path in sorted(self.repos[repo].iterdir())
        ]


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in hub.repos:
                repo = "/".join(parts[2:4])
                told = hub.tree(repo) if parts[4:5] == ["tree"] else hub.info(repo)
                info = json.dumps(told).encode()
                self._send(200, info, {"Content-Type": "application/json"}, body=body)
            elif len(parts) > 4 and parts[2] == "resolve" and "/".join(parts[:2]) in hub.repos:
                self._file(hub.repos["/".join(parts[:2])] / parts[4], body=body)
            else:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body=body)

        def _file(self, path: Path, *, body: bool) -> None:
            if not path.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
                return
            data = path.read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                       "Accept-Ranges": "bytes"}  # fmt: skip
            wanted = self.headers.get("Range", "")
            if body:
                hub.asked.append((path.name, wanted))
            status, first = 200, 0
            if wanted.startswith("bytes=") and not wanted.startswith("bytes=0-0"):
                first = int(wanted.removeprefix("bytes=").split("-")[0])
                status = 206
                headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self._send(
                status,
                data[first:],
                headers,
                body=body,
                cut=hub.cut.pop(path.name, 0) if body else 0,
            )

        def _send(
            self, status: int, data: bytes, headers: dict[str, str], *, body: bool, cut: int = 0
        ) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data[:cut] if cut else data)
            if cut:
                self.close_connection = True

    return Handler


@contextmanager
def fake_hub(repos: dict[str, Path]) -> Iterator[Hub]:
    """A hub that has these repositories, at `url`."""
    hub = Hub(repos)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
