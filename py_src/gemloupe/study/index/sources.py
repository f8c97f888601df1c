"""Where the text comes from: files, or anything that can be iterated. What cannot be read is skipped and counted."""

from __future__ import annotations

import glob
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import refuse

# Characters of a file taken at a time: memory does not grow with the file.
_BLOCK = 1 << 20
_KINDS = (".txt", ".md", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Piece:
    """Some text or token ids. `begins`: the first of its document. `share`: of the source, at its end (0 to 1)."""

    given: str | np.ndarray
    begins: bool = True
    share: float | None = None


@dataclass
class Source:
    """A text that can be gone through from its beginning. `skipped` counts, by reason, what could not be read."""

    given: Any
    skipped: Counter[str] = field(default_factory=Counter)

    def pieces(self) -> Iterator[Piece]:
        """Everything in order. `skipped` is complete at the end."""
        self.skipped.clear()
        given = self.given
        if isinstance(given, (str, os.PathLike)):
            files = _files(given)
            for number, file in enumerate(files):
                yield from self._file(Path(file), number / len(files), (number + 1) / len(files))
            return
        columns = getattr(given, "columns", None)
        if columns is not None:  # a data frame, which would give the names of its columns
            if "text" not in list(columns):
                raise refuse("index-source-unreadable", type=f"{type(given).__name__} without a column 'text'")
            given = given["text"]
        if isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable):
            raise refuse("index-source-unreadable", type=type(given).__name__)
        many = _length(given)
        for number, one in enumerate(given, 1):
            share = None if many is None else number / many
            if isinstance(one, os.PathLike):
                for file in _files(one):
                    yield from self._file(Path(file), None if many is None else (number - 1) / many, share)
            else:
                yield from self._one(one, share)

    def _one(self, one: Any, share: float | None) -> Iterator[Piece]:
        if isinstance(one, Mapping):  # a row of a dataset
            one = one.get("text")
        if isinstance(one, str):
            if one.strip():
                yield Piece(one, True, share)
            else:
                self.skipped["empty"] += 1
            return
        ids = np.asarray(one) if isinstance(one, (Sequence, np.ndarray)) or hasattr(one, "__array__") else None
        if ids is None or isinstance(one, (bytes, bytearray)) or ids.ndim != 1 or ids.dtype.kind not in "iu":
            empty = ids is not None and ids.size == 0
            self.skipped["empty" if empty else "neither text nor token ids"] += 1
        elif not ids.size:
            self.skipped["empty"] += 1
        else:
            yield Piece(ids, True, share)

    def _file(self, file: Path, before: float | None, after: float | None) -> Iterator[Piece]:
        size = 1
        try:
            size = max(1, file.stat().st_size)
            if ".jsonl" in file.suffixes:
                with (
                    gzip.open(file, "rt", encoding="utf-8")
                    if file.suffix == ".gz"
                    else file.open(encoding="utf-8") as f
                ):
                    for line in f:
                        if not line.strip():
                            continue
                        try:
                            text = json.loads(line)
                        except ValueError:
                            text = None
                        if not (isinstance(text, Mapping) and isinstance(text.get("text"), str)):
                            self.skipped["line without a text"] += 1
                            continue
                        yield from self._one(text["text"], after)
                return
            with file.open(encoding="utf-8", newline="") as f:
                yield from self._blocks(f, size, before, after)
        except FileNotFoundError:
            self.skipped["file vanished"] += 1
        except UnicodeDecodeError:
            self.skipped["not UTF-8 text"] += 1
        except (OSError, EOFError, zlib.error):
            self.skipped["file unreadable"] += 1

    def _blocks(self, f: Any, size: int, before: float | None, after: float | None) -> Iterator[Piece]:
        """The text of a file, cut at spaces where it is long."""
        rest, begins, read = "", True, 0
        while True:
            block = f.read(_BLOCK)
            if "\0" in block:
                self.skipped["binary file"] += 1
                return
            read += len(block)
            text = rest + block
            cut = len(text) if not block else max(text.rfind("\n"), text.rfind(" "))
            cut = len(text) if cut <= 0 else cut
            text, rest = text[:cut], text[cut:]
            if text.strip():
                share = None if before is None or after is None else before + (after - before) * min(1, read / size)
                yield Piece(text, begins, share)
                begins = False
            if not block:
                if begins:
                    self.skipped["empty"] += 1
                return


def _files(given: str | os.PathLike[str]) -> list[str]:
    """The files that a path, a folder or a pattern names, in order."""
    path = Path(given).expanduser()
    if path.is_dir():
        inside = (str(file) for file in path.rglob("*") if file.name.endswith(_KINDS) and file.is_file())
        found = sorted(inside)
    elif path.exists():
        found = [str(path)]
    else:  # Path.glob does not take a pattern with a root of its own
        found = sorted(file for file in glob.glob(str(path), recursive=True) if not Path(file).is_dir())  # noqa: PTH207
    if not found:
        raise refuse("index-no-files", given=str(given))
    return found


def _length(given: Any) -> int | None:
    try:
        return max(1, len(given))
    except TypeError:
        return None
