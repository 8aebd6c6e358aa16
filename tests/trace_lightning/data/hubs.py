"""Two stand-ins for the Hugging Face hub, both of which serve a folder: a client in memory, and a local server.

The first has the methods of the real client and refuses calls that those would refuse. The second is spoken to by the
real client.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

COMMIT = "0123456789abcdef" * 2 + "01234567"
REPO = "ibrahimhamamci/CT-RATE"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class FakeHub:
    """A client of a hub that holds `tree`. `fail` is raised by the method it names; `damaged` arrive cut short."""

    def __init__(self, tree: Path):
        self.tree, self.calls, self.fail, self.damaged = tree, [], {}, set()
        self.without: set[str] = set()

    def auth_check(self, *args, **kwargs):
        self._call("auth_check", args, kwargs)

    def repo_info(self, *args, **kwargs):
        self._call("repo_info", args, kwargs)
        return SimpleNamespace(sha=COMMIT)

    def get_paths_info(self, *args, **kwargs):
        asked = self._call("get_paths_info", args, kwargs)
        assert asked["revision"] == COMMIT
        return [
            self._info(path) for path in asked["paths"] if (self.tree / path).is_file() and path not in self.without
        ]

    def hf_hub_download(self, *args, **kwargs):
        asked = self._call("hf_hub_download", args, kwargs)
        assert asked["revision"] == COMMIT
        target = asked["local_dir"] / asked["filename"]
        if target.is_file() and not asked["force_download"]:
            return str(target)  # as the real one does, whatever the size
        target.parent.mkdir(parents=True, exist_ok=True)
        incomplete = target.with_suffix(".incomplete")
        shutil.copyfile(self.tree / asked["filename"], incomplete)
        if asked["filename"] in self.damaged:
            incomplete.write_bytes(incomplete.read_bytes()[:-1] + b"?")
        incomplete.replace(target)
        return str(target)

    def fetched(self) -> list[str]:
        return [asked["filename"] for name, asked in self.calls if name == "hf_hub_download"]

    def _call(self, name: str, args: tuple, kwargs: dict) -> dict:
        asked = inspect.signature(getattr(HfApi, name)).bind(None, *args, **kwargs).arguments
        assert (asked["repo_id"], asked["repo_type"]) == (REPO, "dataset")
        self.calls.append((name, asked))
        if name in self.fail:
            raise self.fail[name]
        return asked

    def _info(self, path: str) -> RepoFile:
        size = (self.tree / path).stat().st_size
        lfs = {"size": size, "oid": sha256(self.tree / path), "pointerSize": 130} if path.endswith(".gz") else None
        return RepoFile(path=path, size=size, oid="1" * 40, lfs=lfs)


@contextmanager
def serve(tree: Path, token: str = "") -> Iterator[SimpleNamespace]:
    """Serve a folder as the hub does, on a free port; `token` is asked for if given.

    The value has `url`; `asked`, name and first byte of each file that was asked for; `slow`, seconds to wait in the
    middle of a volume; `gate`, an event that is set when that middle is reached; `break_off`, whether the connection
    ends in the middle of the next volume.
    """
    state = SimpleNamespace(url="", asked=[], slow=0.0, gate=threading.Event(), break_off=False)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self._answer(with_body=False)

        def do_GET(self):
            self._answer(with_body=True)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            # The client posts a form or JSON, by version.
            if "json" in self.headers.get("Content-Type", ""):
                paths = json.loads(body)["paths"]
            else:
                paths = [unquote(pair.removeprefix("paths=")) for pair in body.split("&") if pair.startswith("paths=")]
            infos = []
            for path in paths:
                if (tree / path).is_file():
                    size = (tree / path).stat().st_size
                    info = {"type": "file", "path": path, "size": size, "oid": "1" * 40}
                    infos.append(info | {"lfs": {"size": size, "oid": sha256(tree / path), "pointerSize": 130}})
            self._json(infos)

        def _answer(self, with_body: bool):
            path = unquote(self.path.split("?")[0])
            if path.endswith("/auth-check"):
                allowed = self.headers.get("Authorization") == f"Bearer {token}" or not token
                return self._json({}) if allowed else self._error(403, "GatedRepo")
            if "/revision/" in path:
                if path.rsplit("/", 1)[1] not in ("main", COMMIT):
                    return self._error(404, "RevisionNotFound")
                return self._json({"id": REPO, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0})
            prefix = f"/datasets/{REPO}/resolve/{COMMIT}/"
            if not path.startswith(prefix) or not (tree / path.removeprefix(prefix)).is_file():
                return self._error(404, "EntryNotFound")
            return self._file(tree / path.removeprefix(prefix), with_body)

        def _file(self, path: Path, with_body: bool):
            data, start = path.read_bytes(), 0
            wanted = self.headers.get("Range")
            if wanted:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
            if with_body:
                state.asked.append((path.name, start))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("ETag", f'"{sha256(path)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                middle = start + (len(data) - start) // 2
                self.wfile.write(data[start:middle])
                self.wfile.flush()
                if path.name.endswith(".nii.gz"):
                    if state.break_off:
                        state.break_off, self.close_connection = False, True
                        return
                    if state.slow:
                        state.gate.set()
                        time.sleep(state.slow)
                with suppress(ConnectionError):  # a client that was killed
                    self.wfile.write(data[middle:])

        def _json(self, content):
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _error(self, status: int, code: str):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
