"""A small hub on loopback: the part of the Hugging Face hub's REST API for uploading and downloading a model."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from running import free_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass
class Repository:
    """A repository.

    Attributes:
        files: revision (a branch's name or a commit) → path → content.
        messages: the message of each commit.
    """

    private: bool
    files: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)

    def commit(self, revision: str, files: dict[str, bytes]) -> str:
        names = "\0".join([*files, *(hashlib.sha1(content).hexdigest() for content in files.values())])
        sha = hashlib.sha1(names.encode()).hexdigest()
        self.files[revision] = self.files[sha] = files
        return sha

    def sha(self, revision: str) -> str:
        """Return the commit of a branch."""
        return next(sha for sha, files in self.files.items() if len(sha) == 40 and files is self.files[revision])


@dataclass
class Hub:
    """The hub.

    Attributes:
        repositories: name → repository.
        large: hash → content of uploaded large files.
        downloaded: the requested paths.
        keys: the values of the Authorization header.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    downloaded: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def repository(self, request: Request) -> Repository | None:
        self.keys.add(request.headers.get("Authorization", ""))
        return self.repositories.get(f"{request.path_params['owner']}/{request.path_params['name']}")

    async def create(self, request: Request) -> Response:
        body = await request.json()
        if request.headers.get("Authorization") is None:
            return JSONResponse({"error": "no token"}, 401)
        name = f"{body['organization']}/{body['name']}"
        known = name in self.repositories
        self.repositories.setdefault(name, Repository(body.get("visibility") == "private"))
        return JSONResponse({"url": f"{self.url}/{name}"}, 409 if known else 200)

    async def preupload(self, request: Request) -> Response:
        paths = [file["path"] for file in (await request.json())["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        return JSONResponse({"files": files})

    async def batch(self, request: Request) -> Response:
        objects = (await request.json())["objects"]
        uploads = [{**o, "actions": {"upload": {"href": f"{self.url}/large/{o['oid']}"}}} for o in objects]
        return JSONResponse({"objects": uploads, "transfer": "basic"})

    async def upload(self, request: Request) -> Response:
        self.large[request.path_params["oid"]] = await request.body()
        return Response()

    async def commit(self, request: Request) -> Response:
        repository: Any = self.repository(request)
        files = dict(repository.files[request.path_params["revision"]])
        for line in (await request.body()).splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                repository.messages.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            else:
                del files[value["path"]]
        sha = repository.commit(request.path_params["revision"], files)
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        return JSONResponse({"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha})

    async def info(self, request: Request) -> Response:
        repository, revision = self.repository(request), request.path_params.get("revision", "main")
        if repository is None or revision not in repository.files:
            code = "RepoNotFound" if repository is None else "RevisionNotFound"
            return JSONResponse({"error": "not found"}, 404, {"X-Error-Code": code})
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        return JSONResponse({"id": name, "sha": repository.sha(revision), "siblings": [], "tags": []})

    async def tree(self, request: Request) -> Response:
        files = self.repository(request).files[request.path_params["revision"]]  # type: ignore[union-attr]
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ]
        return JSONResponse(entries)

    async def resolve(self, request: Request) -> Response:
        path, revision = request.path_params["path"], request.path_params["revision"]
        files = self.repository(request).files[revision]  # type: ignore[union-attr]
        self.downloaded.append(path)
        headers = {"X-Repo-Commit": revision, "ETag": f'"{hashlib.sha1(files[path]).hexdigest()}"'}
        return Response(files[path], headers=headers)

    async def validate(self, request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    def app(self) -> Starlette:
        api = "/api/models/{owner}/{name}"
        return Starlette(
            routes=[
                Route("/api/repos/create", self.create, methods=["POST"]),
                Route("/api/validate-yaml", self.validate, methods=["POST"]),
                Route(f"{api}/preupload/{{revision}}", self.preupload, methods=["POST"]),
                Route(f"{api}/commit/{{revision}}", self.commit, methods=["POST"]),
                Route(f"{api}/revision/{{revision}}", self.info),
                Route(f"{api}/tree/{{revision}}", self.tree),
                Route(api, self.info),
                Route("/{owner}/{name}.git/info/lfs/objects/batch", self.batch, methods=["POST"]),
                Route("/large/{oid}", self.upload, methods=["PUT"]),
                Route("/{owner}/{name}/resolve/{revision}/{path:path}", self.resolve),
            ]
        )


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub in a thread until the block ends."""
    port = free_port()
    hub = Hub(f"http://127.0.0.1:{port}")
    server = uvicorn.Server(uvicorn.Config(hub.app(), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join(10)
