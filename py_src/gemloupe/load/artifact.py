"""Tensor files from elsewhere, opened as if hostile: sizes are checked before anything is read, and no code can run.

Whatever is wrong with a file, only our refusals come out of here.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import Refusal, refuse
from . import cache

PICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib")
_JSON_LIMIT = 16 << 20  # bytes; the manifest of 10,000 SAEs is smaller
_HEADER_LIMIT = 100 << 20  # bytes; safetensors' own limit
_NPZ_MEMBERS = 16
DEFLATED = ".zlib"  # how the name of a compressed file ends
_HUFFMAN_RATIO = 8  # a code is at least one bit for each byte
_WORTH_KEEPING = 1 << 20  # bytes
_NPZ_RATIO = 20  # trained float32 weights hardly compress; a bomb does a thousandfold

_verified: dict[tuple[str, int, int, int], str] = {}
_lock = threading.Lock()


@contextmanager
def _only_refusals(file: Path):
    try:
        yield
    except Refusal:
        raise
    except Exception as error:  # numpy, zipfile and safetensors raise a dozen undeclared kinds on damaged bytes
        raise refuse("scope-damaged", file=file, why=f"{type(error).__name__}: {error}") from error


def check_file(file: Path) -> int:
    """Size in bytes of `file`, if it is an ordinary file that is not a pickle (by name or by content)."""
    if file.suffix.lower() in PICKLED:
        raise refuse("scope-pickled", file=file)
    with _only_refusals(file):
        if not file.exists():
            raise refuse("scope-damaged", file=file, why="it is missing")
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):
            raise refuse("scope-damaged", file=file, why="it is not an ordinary file")
        with file.open("rb") as opened:
            start = opened.read(4)
        # pickle protocols 2 to 5 start with 0x80 and the protocol; torch's zip holds a data.pkl
        if len(start) >= 2 and start[0] == 0x80 and 2 <= start[1] <= 5 and not _is_safetensors(file):
            raise refuse("scope-pickled", file=file)
        if start == b"PK\x03\x04" and any(name.endswith(".pkl") for name in zipfile.ZipFile(file).namelist()):
            raise refuse("scope-pickled", file=file)
        return about.st_size


def _is_safetensors(file: Path) -> bool:
    with file.open("rb") as opened:
        start = opened.read(9)
    return len(start) == 9 and struct.unpack("<Q", start[:8])[0] <= _HEADER_LIMIT and start[8:] == b"{"


def sha256(file: Path) -> str:
    """Hex sha256 of `file`; read once per process as long as its size and time of change stay the same."""
    about = file.stat()
    key = (os.path.realpath(file), about.st_size, about.st_mtime_ns, about.st_ino)
    with _lock:
        known = _verified.get(key)
    if known is None:
        with file.open("rb") as opened:
            known = hashlib.file_digest(opened, "sha256").hexdigest()
        with _lock:
            _verified[key] = known
    return known


def verify(file: Path, expected: str) -> None:
    """Refuses `file` ('scope-damaged') unless its sha256 is `expected`."""
    check_file(file)
    with _only_refusals(file):
        got = sha256(file)
    if got != expected:
        raise refuse("scope-damaged", file=file, why=f"its sha256 is {got}, the manifest says {expected}")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`."""
    if check_file(file) > _JSON_LIMIT:
        raise refuse("scope-damaged", file=file, why=f"it is larger than {_JSON_LIMIT >> 20} MB")
    with _only_refusals(file):
        found = json.loads(file.read_bytes())
        if not isinstance(found, dict):
            raise refuse("scope-damaged", file=file, why="it is not a JSON object")
        return found


@dataclass(frozen=True)
class Content:
    """What a compressed file must hold once it is inflated: so many bytes, with this sha256."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> Content:
        return cls(len(data), hashlib.sha256(data).hexdigest())


def deflate(data: bytes) -> bytes:
    """`data` as a zlib stream, by Huffman codes alone: weights repeat nothing, and looking for it would cost time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(data) + packer.flush()


def inflate(file: Path, content: Content | None = None) -> bytes:
    """What `deflate` compressed into `file`; refused ('scope-damaged') if it is not `content`.

    Never more than eight times the file's size: what would inflate to more was not written by `deflate`. What takes
    long to inflate is kept in the cache folder, and is compared with `content` each time it is read from there.
    """
    most = check_file(file) * _HUFFMAN_RATIO
    expected = most if content is None else content.size
    if expected > most:
        raise refuse("scope-damaged", file=file, why=f"it is said to hold {expected} bytes, more than it can")
    if content is None or content.size < _WORTH_KEEPING:
        return _inflated(file, expected, content)
    kept = cache.folder() / "inflated" / content.sha256
    with suppress(OSError):
        if kept.stat().st_size == content.size and Content.of(data := kept.read_bytes()) == content:
            return data
    data = _inflated(file, expected, content)
    # Only time is lost where there is no room, or no way to write.
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        cache.require_space(len(data) + cache.KEPT_FREE, kept.parent)
        cache.write_atomically(kept, data, durable=False)
    return data


def _inflated(file: Path, expected: int, content: Content | None) -> bytes:
    with _only_refusals(file):
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(file.read_bytes(), expected + 1)
        if len(data) > expected:
            raise refuse("scope-damaged", file=file, why=f"it would inflate to more than {expected} bytes")
        if not unpacker.eof or unpacker.unused_data:
            raise refuse("scope-damaged", file=file, why="its compressed data is cut short, or something follows it")
    if content is not None and (got := Content.of(data)) != content:
        why = f"it holds {got.size} bytes with sha256 {got.sha256}, the manifest says {content.size}, {content.sha256}"
        raise refuse("scope-damaged", file=file, why=why)
    return data


def read_safetensors(
    file: Path, names: Iterable[str], *, optional: Iterable[str] = (), content: Content | None = None
) -> dict[str, torch.Tensor]:
    """The tensors of `file`, copied out of it; all of `names` must be there, and none but `optional` besides.

    A file whose name ends in `DEFLATED` is inflated first, and compared with `content`.
    """
    from safetensors import safe_open

    if file.suffix == DEFLATED:
        return _read_inflated(file, inflate(file, content), names, optional)
    size = check_file(file)
    with _only_refusals(file):
        with file.open("rb") as opened:
            start = opened.read(8)
        header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header <= min(_HEADER_LIMIT, size - 8):
            raise refuse("scope-damaged", file=file, why="it is cut short or not a safetensors file")
        with safe_open(str(file), framework="pt") as opened:
            _check_names(file, set(opened.keys()) - set(optional), names)
            # cloned: a mapped tensor would crash the process if the file shrank
            return {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118


def _read_inflated(file: Path, data: bytes, names: Iterable[str], optional: Iterable[str]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    with _only_refusals(file):
        found = load(data)
        _check_names(file, set(found) - set(optional), names)
        return found


def read_npz(file: Path, names: Iterable[str], *, optional: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """The float arrays of an uncompressed or lightly compressed .npz, as float32; all of `names` must be there, and
    none but `optional` besides. Names that begin with w_ count as W_.

    Every member's header is read, and compared with its declared size, before anything is inflated.
    """
    with _npz(file, names, optional) as (archive, layouts):
        return {_npz_name(name): _npy(archive, name, *layout) for name, layout in layouts.items()}


def npz_shapes(file: Path, names: Iterable[str], *, optional: Iterable[str] = ()) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays that `read_npz` would give, from their headers alone."""
    with _npz(file, names, optional) as (_, layouts):
        return {_npz_name(name): layout[0] for name, layout in layouts.items()}


def _npz_name(member: str) -> str:
    return re.sub("^w_", "W_", member.removesuffix(".npy"))


@contextmanager
def _npz(file: Path, names: Iterable[str], optional: Iterable[str]):
    """(archive, layout of each member), all of it checked but the data."""
    size = check_file(file)
    with _only_refusals(file), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > _NPZ_MEMBERS:
            raise refuse("scope-damaged", file=file, why=f"it holds {len(members)} arrays")
        found = [_npz_name(member.filename) for member in members]
        _check_names(file, [name for name in found if name not in set(optional)], names)
        if sum(member.file_size for member in members) > _NPZ_RATIO * size:
            raise refuse("scope-damaged", file=file, why=f"it would inflate to more than {_NPZ_RATIO} times its size")
        yield archive, {member.filename: _npy_layout(file, archive, member) for member in members}


def _npy(
    archive: zipfile.ZipFile, member: str, shape: tuple[int, ...], dtype: np.dtype, fortran: bool, offset: int
) -> torch.Tensor:
    """One array, read straight into its place: a matrix of Gemma Scope may be 9 GB."""
    flat = np.empty(prod(shape), dtype)
    data = flat.view(np.uint8)
    with archive.open(member) as opened:
        opened.read(offset)
        done = 0
        while done < len(data) and (part := opened.read(1 << 22)):
            data[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        if done < len(data) or opened.read(1):  # the read past the end also checks the CRC
            raise EOFError(f"{member} holds {done} bytes of {len(data)}")
    array = flat.reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def _npy_layout(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple, np.dtype, bool, int]:
    """(shape, dtype, fortran order, offset of the data) of one .npy member, from its header alone."""
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as opened:
        magic = opened.read(8)
        if magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
            raise refuse("scope-damaged", file=file, why=f"{name} is not a numpy array")
        count = "<H" if magic[6] == 1 else "<I"
        length = struct.unpack(count, opened.read(struct.calcsize(count)))[0]
        if length > 10_000:
            raise refuse("scope-damaged", file=file, why=f"the header of {name} is {length} bytes long")
        header = ast.literal_eval(opened.read(length).decode("latin1"))
    shape, descr = header["shape"], header["descr"]
    if isinstance(descr, str) and descr.lstrip("|<>=") == "O":
        raise refuse("scope-pickled", file=file)
    if descr not in ("<f4", "<f2", "<f8"):
        raise refuse("scope-damaged", file=file, why=f"{name} holds {descr!r}, expected '<f4'")
    if not (isinstance(shape, tuple) and all(type(n) is int and n > 0 for n in shape) and len(shape) in (1, 2)):
        raise refuse("scope-damaged", file=file, why=f"{name} has shape {shape!r}")
    offset, dtype = 8 + struct.calcsize(count) + length, np.dtype(descr)
    if offset + prod(shape) * dtype.itemsize != member.file_size:
        raise refuse("scope-damaged", file=file, why=f"{name} says {shape} but holds {member.file_size} bytes")
    return shape, dtype, header["fortran_order"] is True, offset


def _check_names(file: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    got, want = sorted(found), sorted(expected)
    if got != want:
        raise refuse("scope-damaged", file=file, why=f"it holds {got}, expected {want}")


def check_shapes(
    file: Path,
    tensors: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    site: object,
    model: object = "this scope",
) -> None:
    """Refuses tensors of other shapes ('scope-other-shape') or with NaN or infinity ('scope-not-finite')."""
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            got = tuple(tensors[name].shape)
            raise refuse("scope-other-shape", file=file, tensor=name, got=got, expected=shape, site=site, model=model)
        if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise refuse("scope-not-finite", file=file, tensor=name)
