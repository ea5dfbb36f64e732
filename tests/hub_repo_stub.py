"""A loopback server that keeps model repositories as the hub does: made, pushed to by commits, read back.

It speaks what huggingface_hub does with HF_HUB_DISABLE_XET: create, preupload, LFS batch and upload, commit, model
info, tree and resolve. It can die, also in the middle of an upload, and come back at the same address.
"""

import base64
import contextlib
import json
import socket
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_StubStubStubStubStubStubStubStub00"
LFS = (".safetensors", ".parquet", ".png", ".bin")


@dataclass
class Repo:
    private: bool = True
    gated: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def sha(self, number: int = -1) -> str:
        number %= len(self.commits)
        return sha1(f"{number}".encode() + b"".join(sorted(self.commits[number].values()))).hexdigest()

    def at(self, revision: str) -> dict[str, bytes] | None:
        shas = {self.sha(number): files for number, files in enumerate(self.commits)}
        return self.files if revision == "main" else shas.get(revision)


class HubStub:
    """A context manager. `repos` and `requests` grow; the rest are switches."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut_uploads = 0
        """So many uploads are cut off half-way, each followed by the server's death."""
        self.refuse_commits = 0
        """So many commits get status 400."""
        self.delay_commits: Event | None = None
        """Commits wait for it."""
        self.connections: set[socket.socket] = set()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def die(self) -> None:
        """Connections are refused from now on, until `start`."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            for connection in list(self.connections):  # clients keep them for their next requests
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "HubStub":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.die()


def _handler(hub: HubStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def handle(self) -> None:
            hub.connections.add(self.connection)
            with contextlib.suppress(ConnectionError):
                super().handle()
            hub.connections.discard(self.connection)

        @property
        def token(self) -> str | None:
            return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self._parts()
            if parts[:2] == ["api", "models"]:
                name, rest = "/".join(parts[2:4]), parts[4:]
            else:
                name, rest = "/".join(parts[:2]), parts[2:]
            if (repo := self._readable(name)) is None:
                return
            files = repo.at(rest[1]) if len(rest) > 1 else repo.files
            if files is None:
                self._error(404, "RevisionNotFound")
            elif parts[0] == "api" and rest[:1] in ([], ["revision"]):
                siblings = [{"rfilename": path} for path in files]
                sha = repo.sha() if len(rest) < 2 or rest[1] == "main" else rest[1]
                self._json(
                    {"id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": [], "downloads": 0}
                )
            elif parts[0] == "api" and rest[0] == "tree":
                self._json([_entry(path, data) for path, data in files.items()])
            elif rest[0] == "resolve" and "/".join(rest[2:]) in files:
                path = "/".join(rest[2:])
                data = files[path]
                is_lfs = path.endswith(LFS)
                headers = {"ETag": f'"{(sha256 if is_lfs else sha1)(data).hexdigest()}"', "Accept-Ranges": "bytes"}
                self._send(200, data, headers | {"X-Repo-Commit": repo.sha() if rest[1] == "main" else rest[1]})
            else:
                self._error(404, "EntryNotFound")

        def do_POST(self) -> None:
            parts, body = self._parts(), self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.token != TOKEN:
                self._error(401, None, "Invalid credentials in Authorization header")
            elif parts == ["api", "repos", "create"]:
                self._create(json.loads(body))
            elif parts == ["api", "validate-yaml"]:
                assert json.loads(body)["content"].startswith("---\nlicense: ")
                self._json({"errors": [], "warnings": []})
            elif parts[:2] == ["api", "models"] and parts[4] == "preupload":
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self._json({"files": files})
            elif parts[-3:] == ["lfs", "objects", "batch"]:
                objects = [{"oid": one["oid"], "size": one["size"]} for one in json.loads(body)["objects"]]
                for one in objects:
                    if one["oid"] not in hub.objects:
                        one["actions"] = {"upload": {"href": f"{hub.endpoint}/lfs/{one['oid']}"}}
                self._json({"transfer": "basic", "objects": objects})
            elif parts[:2] == ["api", "models"] and parts[4] == "commit":
                self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])
            else:
                self._error(404, "RepoNotFound")

        def do_PUT(self) -> None:
            parts, size = self._parts(), int(self.headers["Content-Length"])
            if hub.cut_uploads:
                hub.cut_uploads -= 1
                self.rfile.read(size // 2)
                hub.die()
                self.close_connection = True
                return
            data = self.rfile.read(size)
            assert sha256(data).hexdigest() == parts[1]
            hub.objects[parts[1]] = data
            self._send(200, b"", {})

        def _create(self, wanted: dict) -> None:
            name = f"{wanted['organization']}/{wanted['name']}"
            if wanted["organization"] != "user":
                self._error(403, None, "You don't have the rights to create a model under this namespace")
            elif name in hub.repos:
                answer = {"error": "You already created this model repo", "url": f"{hub.endpoint}/{name}"}
                self._send(409, json.dumps(answer).encode(), {"Content-Type": "application/json"})
            else:
                hub.repos[name] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
                self._json({"url": f"{hub.endpoint}/{name}"})

        def _commit(self, name: str, lines: list[dict]) -> None:
            if hub.delay_commits is not None:
                hub.delay_commits.wait(30)
            if hub.refuse_commits:
                hub.refuse_commits -= 1
                self._send(400, b'{"error": "not now, said the stub"}', {"Content-Type": "application/json"})
                return
            repo = hub.repos[name]
            files = dict(repo.files)
            for line in lines:
                value = line["value"]
                match line["key"]:
                    case "header":
                        repo.messages.append(value["summary"])
                    case "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    case "lfsFile":
                        files[value["path"]] = hub.objects[value["oid"]]
                    case "deletedFile":
                        del files[value["path"]]
            repo.commits.append(files)
            self._json({"commitUrl": f"{hub.endpoint}/{name}/commit/{repo.sha()}", "commitOid": repo.sha()})

        def _readable(self, name: str) -> Repo | None:
            repo = hub.repos.get(name)
            if self.token is not None and self.token != TOKEN:
                self._error(401, None, "Invalid credentials in Authorization header")
            elif repo is None or (repo.private and self.token is None):
                self._error(404 if self.token else 401, "RepoNotFound")
            elif repo.gated:
                self._error(403, "GatedRepo")
            else:
                return repo
            return None

        def _parts(self) -> list[str]:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            return path.removeprefix("/").split("/")

        def _json(self, content) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _error(self, status: int, code: str | None, message: str = "") -> None:
            named = {"X-Error-Code": code, "X-Error-Message": message}
            # Some proxies send back what they got: no message of ours may show it.
            body = json.dumps({"error": f"{message} ({self.headers.get('Authorization')})"}).encode()
            self._send(status, body, {name: value for name, value in named.items() if value})

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler


def _entry(path: str, data: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(data), "oid": sha1(data).hexdigest()}
    if path.endswith(LFS):
        entry["lfs"] = {"oid": sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def taken_for_the_hub(stub: HubStub, home: Path, monkeypatch) -> None:
    """By this process and by its children; nothing of the user's is read."""
    from huggingface_hub import constants

    of_this_process = {
        "ENDPOINT": stub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": stub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in of_this_process.items():
        monkeypatch.setattr(constants, name, value)
    of_children = {
        "HF_ENDPOINT": stub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in of_children.items():
        monkeypatch.setenv(name, value)


def files_with(text: str, folder: Path) -> list[str]:
    """Files below the folder that hold the text."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
