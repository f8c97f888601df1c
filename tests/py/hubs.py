"""Repositories of Gemma Scope as Hugging Face's cache lays them out, and a small hub that serves them: random numbers.

    cache = HubCache(tmp_path / "hub")
    cache.add(entry)                      # models--google--gemma-scope-2b-pt-res/snapshots/<commit>/layer_12/...

Large files lie in blobs/ under their sha256, and the snapshot links to them; refs/main names the commit.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from gemloupe.load.catalog import Entry, catalog

COMMIT = "fd571b47c1c64851e9b1989792367b9babb4af63"
HOOKS = {
    "res": "output",
    "att": "self_attn.o_proj.input",
    "mlp": "post_feedforward_layernorm.output",
    "transcoder": "pre_feedforward_layernorm.output",
}


def entry(name: str, *, width: int | None = None, d_in: int | None = None) -> Entry:
    """The catalogue's entry of that name; smaller than it is, if so wanted."""
    found = catalog().find(name)
    return replace(found, width=width or found.width, d_in=d_in or found.d_in)


def arrays(entry: Entry, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of the entry's shape, under the names the release has."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    decoder = normal(entry.width, entry.d_in)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    found = {
        "W_enc": np.ascontiguousarray(decoder.T) * np.float32(1.1),
        "b_enc": normal(entry.width) / 10,
        "W_dec": decoder,
        "b_dec": normal(entry.d_in) / 10,
        "threshold": random.uniform(0.5, 2, entry.width).astype(np.float32),
    }
    if entry.generation == 1:
        return found
    found = {name.lower(): value for name, value in found.items()}
    return found | ({"affine_skip_connection": normal(entry.d_in, entry.d_in)} if entry.affine else {})


def weights(entry: Entry, tensors: dict[str, np.ndarray] | None = None) -> bytes:
    """The file of the entry's release that holds `tensors` (default: `arrays`)."""
    tensors = arrays(entry) if tensors is None else tensors
    if entry.generation == 1:
        file = io.BytesIO()
        np.savez(file, **tensors)
        return file.getvalue()
    from safetensors.numpy import save

    return save(tensors)


def config(entry: Entry, **changes: object) -> bytes:
    """config.json of Gemma Scope 2."""
    about = {
        "architecture": "jump_relu",
        "model_name": f"google/{entry.model}",
        "width": entry.width,
        "l0": entry.l0,
        "hf_hook_point_in": f"model.layers.{entry.layer}.{HOOKS[entry.kind]}",
        "affine_connection": entry.affine,
        "type": "sae",
    }
    return json.dumps(about | changes).encode()


class HubCache:
    """A folder as `HF_HUB_CACHE` is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, entry: Entry, data: bytes | None = None, *, commit: str = COMMIT, name: str | None = None) -> Path:
        """Puts the entry's weights (or `data`, as the file `name`) there as a download would; returns the snapshot's
        path. Gemma Scope 2 gets its config too.
        """
        repo = self.folder / f"models--{entry.repo.replace('/', '--')}"
        data = weights(entry) if data is None else data
        blob = repo / "blobs" / hashlib.sha256(data).hexdigest()
        link = repo / "snapshots" / commit / (name or entry.file)
        for folder in (blob.parent, link.parent, repo / "refs"):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
        (repo / "refs" / "main").write_text(commit)
        if entry.generation == 2 and name is None:
            self.add(entry, config(entry), commit=commit, name=f"{entry.path}/config.json")
        return link


def bomb(entry: Entry) -> bytes:
    """An npz of the right names and shapes that inflates to a hundred times its size."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays(entry).items():
            member = io.BytesIO()
            np.save(member, np.zeros_like(array))
            archive.writestr(f"{name}.npy", member.getvalue())
    return file.getvalue()


class FakeHub:
    """What the Hub answers: `files` by '/repo/name'; faults on request. `asked` holds (method, path, Range, token)."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.commit = COMMIT
        self.before: dict[str, dict[str, bytes]] = {}  # files by older commits
        self.asked: list[tuple[str, str, str | None, str | None]] = []
        self.status: int | None = None  # answered to everything
        self.code: str | None = None  # the Hub's X-Error-Code
        self.cut: list[int] = []  # after so many bytes the connection drops; one number per download
        self.lie: bytes | None = None  # sent in place of every file, with the true file's digest

    def put(self, entry: Entry, data: bytes | None = None) -> None:
        self.files[f"/{entry.repo}/{entry.file}"] = weights(entry) if data is None else data
        if entry.generation == 2:
            self.files[f"/{entry.repo}/{entry.path}/config.json"] = config(entry)

    def move_on(self, commit: str) -> None:
        """A new commit of every repository; the old one stays to be asked for by its name."""
        self.before[self.commit] = dict(self.files)
        self.commit = commit

    def downloads(self) -> list[tuple[str, str | None]]:
        """(path, Range) of every GET of a file."""
        return [(path, ranged) for method, path, ranged, _ in self.asked if method == "GET"]


@contextmanager
def serving(hub: FakeHub):
    """`hub` on a port of this machine; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path, self.headers["Range"], self.headers["Authorization"]))
            repo, _, name = path.partition("/resolve/")
            revision, _, name = name.partition("/")
            commit = hub.commit if revision == "main" else revision
            files = hub.files if commit == hub.commit else hub.before.get(commit, {})
            data = files.get(f"{repo}/{name}")
            if hub.status or data is None:
                self._send(hub.status or 404, b"", {"X-Error-Code": hub.code or "EntryNotFound"})
                return
            about = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            if self.command == "HEAD":
                self._send(200, b"", about, length=len(data))
                return
            data = data if hub.lie is None else hub.lie
            start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            if start:
                about["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            left = data[start:]
            sent = left[: hub.cut.pop(0)] if hub.cut else left
            self._send(206 if start else 200, sent, about, length=len(left))
            if len(sent) < len(left):
                self.close_connection = True

        def _send(self, status: int, data: bytes, about: dict[str, str], length: int | None = None) -> None:
            self.send_response(status)
            for name, value in about.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
