"""A loopback server that answers as the hub does for one dataset: its commit, its tree, its files by range."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(name: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the files of `folder` as dataset `name`; gives the endpoint and a growing list of requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
            api = f"/api/datasets/{name}"
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                siblings = [{"rfilename": entry["path"]} for entry in tree("", True) if entry["type"] == "file"]
                self._json({"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
            elif path.startswith(f"{api}/tree/{COMMIT}"):
                below = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
                if (folder / below).is_dir():
                    self._json(tree(below, "recursive=True" in self.path or "recursive=true" in self.path))
                else:
                    self._missing("EntryNotFound")
            elif path.startswith(f"/datasets/{name}/resolve/{COMMIT}/"):
                self._file(folder / path.removeprefix(f"/datasets/{name}/resolve/{COMMIT}/"))
            else:
                self._missing("RepoNotFound")

        def _json(self, content) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _missing(self, code: str) -> None:
            self._send(404, b"{}", {"X-Error-Code": code})

        def _file(self, path: Path) -> None:
            if not path.is_file():
                self._missing("EntryNotFound")
                return
            data, status = path.read_bytes(), 200
            headers = {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if wanted := self.headers.get("Range"):
                first, last = wanted.removeprefix("bytes=").split("-")
                stop = int(last) + 1 if last else len(data)
                headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(data)}"
                data, status = data[int(first) : stop], 206
            self._send(status, data, headers)

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    def tree(below: str, recursive: bool) -> list[dict]:
        found = (folder / below).rglob("*") if recursive else (folder / below).iterdir()
        return [
            {
                "type": "file" if path.is_file() else "directory",
                "path": str(path.relative_to(folder)),
                "size": path.stat().st_size if path.is_file() else 0,
                "oid": sha1(str(path).encode()).hexdigest(),
            }
            for path in sorted(found)
        ]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
