"""Text into training contexts: packed, shuffled, split into training and held-out, with seeds."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import refuse

_SPAN = 8  # tokens; text that is not repeated hardly ever has the same eight twice


def read_texts(paths: Iterable[str | Path]) -> Iterator[str]:
    """The texts of .txt files (one each) and .jsonl or .jsonl.gz files (the 'text' field of each line)."""
    for text, _ in read_labelled(paths):
        yield text


def read_labelled(paths: Iterable[str | Path], label: str | None = None) -> Iterator[tuple[str, str]]:
    """Texts as `read_texts` gives them, each with the field `label` of its line ('' if None is asked for).

    A .txt file has no fields; its label is its name without the ending. Refuses 'text-file-unreadable'.
    """
    for path in map(Path, paths):
        try:
            if ".jsonl" not in path.suffixes:
                yield path.read_text(encoding="utf-8"), "" if label is None else path.stem
                continue
            with (
                gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file
            ):
                for number, line in enumerate(file, 1):
                    yield _fields(path, number, line, label)
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise refuse("text-file-unreadable", file=path, why=why) from error


def _fields(path: Path, number: int, line: str, label: str | None) -> tuple[str, str]:
    try:
        about = json.loads(line)
    except ValueError as error:
        raise refuse("text-file-unreadable", file=path, why=f"line {number} is not JSON") from error
    for field in ("text",) if label is None else ("text", label):
        if not isinstance(about, dict) or not isinstance(about.get(field), str):
            raise refuse("text-file-unreadable", file=path, why=f"line {number} has no {field!r} that is a string")
    return about["text"], "" if label is None else about[label]


def held_out(text: str, one_in: int = 50) -> bool:
    """Whether a text is kept for evaluation: decided by its own hash, so the split survives any reordering."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % one_in == 0


def pack(
    texts: Iterable[str], tokenizer: Any, *, bos: int, context: int = 256, seed: int = 0, most: int | None = None
) -> np.ndarray:
    """Token ids [context, position] (int32): each row is BOS, then `context` - 1 tokens of one text.

    A text gives as many whole rows as fit; remainders are dropped, and rows are shuffled by `seed`, so that
    taking the first n rows is a fair sample of all of them.
    """
    packed, _ = pack_labelled(((text, "") for text in texts), tokenizer, bos=bos, context=context, seed=seed)
    return packed[: max(1, most // (context - 1))] if most is not None else packed


def pack_labelled(
    texts: Iterable[tuple[str, str]], tokenizer: Any, *, bos: int, context: int = 256, seed: int = 0
) -> tuple[np.ndarray, list[str]]:
    """The rows of `pack` from texts with labels, and the label of each row."""
    if context < 2:
        raise refuse("count-unreadable", name="context", given=context, least=2)
    rows: list[np.ndarray] = []
    labels: list[str] = []
    body = context - 1
    batch: list[tuple[str, str]] = []

    def flush() -> None:
        encodings = tokenizer([text for text, _ in batch], add_special_tokens=False)["input_ids"]
        for encoding, (_, label) in zip(encodings, batch, strict=True):
            ids = np.asarray(encoding, dtype=np.int32)
            found = ids[: len(ids) // body * body].reshape(-1, body)
            rows.extend(found)
            labels.extend([label] * len(found))
        batch.clear()

    for one in texts:
        batch.append(one)
        if len(batch) == 256:
            flush()
    if batch:
        flush()
    found = len(rows) * body
    if found < 8 * body:
        raise refuse("training-no-text", tokens=found, least=8 * body)
    packed = np.concatenate([np.full((len(rows), 1), bos, np.int32), np.stack(rows)], axis=1)
    _check_varied(packed)
    order = np.random.default_rng(seed).permutation(len(packed))
    return packed[order], [labels[index] for index in order]


def _check_varied(packed: np.ndarray) -> None:
    """Refuses rows that are mostly the same, and text that repeats itself at another step than a row's length."""
    distinct = len(np.unique(packed, axis=0)) / len(packed)
    if distinct < 0.5:
        raise refuse("training-repeated", share=f"{1 - distinct:.0%}")
    some = packed[:: max(1, len(packed) // 4096), 1:]
    span = min(_SPAN, some.shape[1])
    runs = np.lib.stride_tricks.sliding_window_view(some, span, axis=1).reshape(-1, span)
    odd = np.random.default_rng(0).integers(1, 2**62, span, dtype=np.int64) | 1
    varied = len(np.unique((runs * odd).sum(1))) / len(runs)  # sums overflow, which makes them a hash
    if varied < 0.1:
        raise refuse("training-repeated", share=f"{1 - varied:.0%}")
