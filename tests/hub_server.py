"""A stand-in for the hub's API on this machine: as much of it as pushing and loading a bundle asks.

The real client (``huggingface_hub``) talks to it, so what is sent is what a hub gets; what a hub
answers is ours, written after its documented routes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub.constants
import pytest
import yaml


class Hub(BaseHTTPRequestHandler):
    """Repositories are ``{name: {file: content}}``, with one commit each."""

    repos: dict[str, dict[str, bytes]]
    tokens: list[str | None]

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def _answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        self.tokens.append(self.headers.get("Authorization"))
        path, body = self.path.split("?")[0], self._body()
        base = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.repos.setdefault(name, {})
            return self._answer({"url": f"{base}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":  # of a card's metadata
            _, _, rest = json.loads(body)["content"].partition("---\n")
            found = yaml.safe_load(rest.partition("\n---\n")[0])
            wrong = [] if isinstance(found, dict) else [{"message": "no metadata"}]
            return self._answer({"errors": wrong, "warnings": []}, 400 if wrong else 200)
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in files
            ]
            return self._answer({"files": modes})
        if "/commit/" in path:
            for line in map(json.loads, filter(None, body.splitlines())):
                if line["key"] == "file":
                    value = line["value"]
                    self.repos[name][value["path"]] = base64.b64decode(value["content"])
            commit = self._commit(name)
            done = {"commitUrl": f"{base}/{name}/commit/{commit}", "commitOid": commit}
            return self._answer(done)
        return self._answer({"error": path}, 404)

    def _commit(self, name: str) -> str:
        whole = b"".join(k.encode() + v for k, v in sorted(self.repos[name].items()))
        return hashlib.sha1(whole).hexdigest()

    def _get(self, *, head: bool) -> None:
        parts = self.path.split("?")[0].split("/")
        if parts[1] == "api":
            name = "/".join(parts[3:5])
            if parts[2] != "models" or name not in self.repos:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            if "tree" in parts:
                files = self.repos[name].items()
                return self._answer(
                    [
                        {"type": "file", "path": file, "size": len(held), "oid": _oid(held)}
                        for file, held in files
                    ]
                )
            siblings = [{"rfilename": file} for file in self.repos[name]]
            facts = {"id": name, "sha": self._commit(name), "siblings": siblings}
            return self._answer(facts | {"private": False, "tags": [], "downloads": 0})
        name, file = "/".join(parts[1:3]), "/".join(parts[5:])
        content = self.repos.get(name, {}).get(file)
        self.send_response(404 if content is None else 200)
        if name in self.repos:
            self.send_header("X-Repo-Commit", self._commit(name))
        self.send_header("ETag", f'"{_oid(content or b"")}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if content and not head:
            self.wfile.write(content)
        return None

    def do_GET(self) -> None:
        self._get(head=False)

    def do_HEAD(self) -> None:
        self._get(head=True)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """Within the block the client finds this hub, and no other, and is online."""

    Own = type("Own", (Hub,), {"repos": {}, "tokens": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    try:
        yield Own
    finally:
        server.shutdown()
        server.server_close()
