"""Text into passages of token ids, and passages into the parts that an index is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import Refusal, refuse
from .sources import Source


@dataclass
class Shard:
    """Passages that are worked on together, and committed together. `first` counts those before it."""

    number: int
    first: int
    ids: list[np.ndarray] = field(default_factory=list)  # int32 each, BOS first
    documents: int = 0  # that begin here
    share: float | None = None
    ordinary: list[int] = field(default_factory=list)  # tokens of each passage that are not special

    @property
    def tokens(self) -> int:
        return sum(self.ordinary)

    @property
    def digest(self) -> str:
        """sha256 of the passages."""
        found = hashlib.sha256()
        for ids in self.ids:
            found.update(len(ids).to_bytes(4, "little") + ids.astype("<i4").tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class Cutter:
    """How text becomes passages: BOS and at most `length` - 1 tokens of one document, so that no passage is longer than
    the model's context."""

    tokenizer: Any
    bos: int
    special: Collection[int]
    vocabulary: int
    length: int

    def shards(self, source: Source, size: int, most: int | None = None) -> Iterator[Shard]:
        """Parts with at least `size` ordinary tokens each (the last may have fewer); at most `most` tokens in all."""
        special = np.array(sorted(self.special), np.int64)
        shard, total = Shard(0, 0), 0
        waiting = 0
        for piece in source.pieces():
            waiting += piece.begins
            for ids in self._cut(piece.given, source):
                ordinary = int((~np.isin(ids, special)).sum())
                if not ordinary:
                    source.skipped["only special tokens"] += 1
                    continue
                shard.ids.append(ids)
                shard.documents += waiting
                waiting = 0
                shard.ordinary.append(ordinary)
                total += ordinary
                shard.share = piece.share
                if most is not None and total >= most:
                    yield shard
                    return
                if shard.tokens >= size:
                    yield shard
                    shard = Shard(shard.number + 1, shard.first + len(shard.ids))
        if shard.ids:
            yield shard

    def _cut(self, given: str | np.ndarray, source: Source) -> Iterator[np.ndarray]:
        if isinstance(given, str):
            from ...run.tokens import text_ids

            try:
                ids = np.array(text_ids(self.tokenizer, given), np.int64)
            except Refusal as refusal:
                if refusal.code != "text-surrogate":
                    raise
                source.skipped["not Unicode text"] += 1
                return
        else:
            ids = given.astype(np.int64)
            wrong = np.flatnonzero((ids < 0) | (ids >= self.vocabulary))
            if len(wrong):
                at = int(wrong[0])
                raise refuse("token-id-unknown", given=int(ids[at]), position=at, last=self.vocabulary - 1)
        if len(ids) and ids[0] == self.bos:
            ids = ids[1:]
        for start in range(0, len(ids), self.length - 1):
            yield np.concatenate([[self.bos], ids[start : start + self.length - 1]]).astype(np.int32)


def passes(ids: list[np.ndarray], tokens: int) -> Iterator[list[int]]:
    """Numbers of passages that go through the model together: of about the same length, and with what fills up the
    shorter ones at most `tokens` in all. Every passage once."""
    order = sorted(range(len(ids)), key=lambda number: (-len(ids[number]), number))
    start = 0
    while start < len(order):
        many = max(1, tokens // len(ids[order[start]]))
        yield order[start : start + many]
        start += many
