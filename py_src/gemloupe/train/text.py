"""Text into training contexts: packed, shuffled, split into training and held-out, with seeds."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import refuse


def read_texts(paths: Iterable[str | Path]) -> Iterator[str]:
    """The texts of .txt files (one each) and .jsonl or .jsonl.gz files (the 'text' field of each line)."""
    for path in map(Path, paths):
        if ".jsonl" not in path.suffixes:
            yield path.read_text(encoding="utf-8")
            continue
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for line in file)


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
    rows: list[np.ndarray] = []
    body = context - 1
    batch: list[str] = []

    def flush() -> None:
        for encoding in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            ids = np.asarray(encoding, dtype=np.int32)
            rows.extend(ids[: len(ids) // body * body].reshape(-1, body))
        batch.clear()

    for text in texts:
        batch.append(text)
        if len(batch) == 256:
            flush()
    if batch:
        flush()
    found = len(rows) * body
    if found < 8 * body:
        raise refuse("training-no-text", tokens=found, least=8 * body)
    packed = np.concatenate([np.full((len(rows), 1), bos, np.int32), np.stack(rows)], axis=1)
    distinct = len(np.unique(packed, axis=0))
    if distinct < 0.5 * len(packed):
        raise refuse("training-repeated", share=f"{1 - distinct / len(packed):.0%}")
    packed = packed[np.random.default_rng(seed).permutation(len(packed))]
    return packed[: max(1, most // body)] if most is not None else packed
