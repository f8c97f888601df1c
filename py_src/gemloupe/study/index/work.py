"""An index while it is being made: a plan, and the parts that are done, each whole or not there."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import Refusal
from ...site import Site
from .passages import Shard
from .store import read_json
from .tally import WINDOW, Counts, Examples, Firings, Part

_DONE = "done.json"
_TABLES = ("counts", "histogram", "examples", "firings")


@dataclass(frozen=True)
class Done:
    """A committed shard."""

    folder: Path
    digest: str
    tokens: int
    documents: int
    passages: int

    def part(self, number: int, width: int) -> Part:
        """What it adds to site `number` (of the plan's)."""
        counts = Counts.none(width)
        found = self._columns("counts", number)
        for name in ("fired", "total", "maximum"):
            getattr(counts, name)[found["feature"]] = found[name]
        found = self._columns("histogram", number)
        counts.histogram[found["feature"], found["bin"]] = found["count"]
        return Part(counts, *self.kept(number))

    def kept(self, number: int) -> tuple[Examples, Firings]:
        """Only the entries that part of `part`."""
        found = self._columns("examples", number)
        window = found.pop("window").reshape(-1, 2 * WINDOW + 1)
        return Examples(**found, window=window), Firings(**self._columns("firings", number))

    def ids(self) -> list[np.ndarray]:
        """Its passages, int32 each."""
        import pyarrow.parquet as parquet

        column = parquet.read_table(self.folder / "passages.parquet")["ids"].combine_chunks()
        values, offsets = column.values.to_numpy(), column.offsets.to_numpy()
        return [values[start:end] for start, end in itertools.pairwise(offsets)]

    def _columns(self, name: str, number: int) -> dict[str, np.ndarray]:
        table = self._open(name).read_row_group(number)
        return {column: _plain(table[column]) for column in table.column_names}

    def _open(self, name: str) -> Any:
        return self._files.setdefault(name, _parquet(self.folder / f"{name}.parquet"))

    @cached_property
    def _files(self) -> dict[str, Any]:
        return {}


def _parquet(file: Path) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(file)


def _plain(column: Any) -> np.ndarray:
    import pyarrow

    array = column.combine_chunks()
    if pyarrow.types.is_fixed_size_binary(array.type):
        size = array.type.byte_width
        return np.frombuffer(array.buffers()[1], np.uint8)[array.offset * size :][: len(array) * size]
    return array.to_numpy()


def committed(folder: Path) -> Iterator[tuple[int, Done]]:
    """Shards that are whole, by number. Others, cut short or of a run that was killed, are removed."""
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        done = _done(place) if place.name.isdigit() else None
        if done is None:
            shutil.rmtree(place, ignore_errors=True)
        else:
            yield int(place.name), done


def _done(folder: Path) -> Done | None:
    try:
        about = read_json(folder / _DONE)
        for name, digest in about["files"].items():
            if _sha256(folder / name) != digest:
                return None
        return Done(folder, about["digest"], about["tokens"], about["documents"], about["passages"])
    except (Refusal, OSError, KeyError, TypeError, AttributeError):
        return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def commit(folder: Path, shard: Shard, parts: Mapping[Site, Part]) -> Done:
    """Write a shard: all of it or nothing."""
    import pyarrow

    target = folder / f"{shard.number:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder, prefix="."))
    try:
        digests = {}
        for name in _TABLES:
            tables = (pyarrow.table(_table(name, part)) for part in parts.values())
            digests[f"{name}.parquet"] = write(made / f"{name}.parquet", tables)
        ids = pyarrow.array(shard.ids, pyarrow.list_(pyarrow.int32()))
        digests["passages.parquet"] = write(made / "passages.parquet", [pyarrow.table({"ids": ids})])
        about: dict[str, Any] = {
            "digest": shard.digest,
            "tokens": shard.tokens,
            "documents": shard.documents,
            "passages": len(shard.ids),
            "files": digests,
        }
        write_synced(made / _DONE, json.dumps(about).encode())
        made.replace(target)
        sync(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return Done(target, about["digest"], shard.tokens, shard.documents, len(shard.ids))


def _table(name: str, part: Part) -> dict[str, Any]:
    import pyarrow

    counts = part.counts
    if name == "counts":
        feature = np.flatnonzero(counts.fired).astype(np.uint32)
        return {
            "feature": feature,
            "fired": counts.fired[feature],
            "total": counts.total[feature],
            "maximum": counts.maximum[feature],
        }
    if name == "histogram":
        row, bin_ = np.nonzero(counts.histogram)
        return {
            "feature": row.astype(np.uint32),
            "bin": bin_.astype(np.uint8),
            "count": counts.histogram[row, bin_],
        }
    entries: Examples | Firings = part.examples if name == "examples" else part.firings
    columns = {field.name: getattr(entries, field.name) for field in fields(entries)}
    if name == "examples":
        size = 2 * WINDOW + 1
        data = pyarrow.py_buffer(np.ascontiguousarray(columns["window"]))
        window = pyarrow.FixedSizeBinaryArray.from_buffers(pyarrow.binary(size), len(entries), [None, data])
        columns["window"] = window
    return columns


# ---- files


def write(file: Path, tables: Any, *, level: int = 1, **options: Any) -> str:
    """A Parquet file with one row group for each table, on the disk when this returns; its sha256."""
    from pyarrow.parquet import ParquetWriter

    packed, writer = io.BytesIO(), None
    for table in tables:
        if writer is None:
            options = {"use_dictionary": False, "write_statistics": False, "store_schema": False} | options
            writer = ParquetWriter(packed, table.schema, compression="zstd", compression_level=level, **options)
        writer.write_table(table, row_group_size=max(1, len(table)))
    assert writer is not None
    writer.close()
    data = packed.getvalue()
    write_synced(file, data)
    return hashlib.sha256(data).hexdigest()


def write_synced(file: Path, data: bytes) -> None:
    with file.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())


def sync(folder: Path) -> None:
    """What was renamed into `folder` stays there if the power fails."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
