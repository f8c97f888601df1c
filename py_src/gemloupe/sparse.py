"""Sparse activations: which features are on at which tokens, and how strongly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import refuse
from .feature import whole


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class SparseActs:
    """Activations [token, feature] as compressed sparse rows; what is not listed is 0.

    `indptr` uint32 [tokens + 1], `indices` uint32 [nnz] ascending within each row, `values` float32 [nnz] > 0,
    in raw activation units.
    """

    shape: tuple[int, int]
    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        for name, dtype in (("indptr", np.uint32), ("indices", np.uint32), ("values", np.float32)):
            object.__setattr__(self, name, _frozen(np.array(getattr(self, name), dtype=dtype)))
        tokens, width = self.shape
        object.__setattr__(self, "shape", (int(tokens), int(width)))
        steps = np.diff(self.indptr.astype(np.int64))
        if (
            self.indptr.shape != (tokens + 1,)
            or self.indptr[0] != 0
            or (steps < 0).any()
            or self.indices.shape != self.values.shape
            or self.indices.shape != (int(self.indptr[-1]),)
            or (self.indices.size and int(self.indices.max()) >= width)
        ):
            raise refuse("file-unreadable", file="SparseActs", kind="sparse array", why="its parts do not fit together")

    def checked(self) -> SparseActs:
        """This, if its rows ascend and its values are finite and above 0; for what comes from a file."""
        ascending = np.diff(self.indices.astype(np.int64)) > 0
        same_row = np.diff(self.rows) == 0
        if not (ascending | ~same_row).all() or not (np.isfinite(self.values) & (self.values > 0)).all():
            raise refuse("file-unreadable", file="SparseActs", kind="sparse array", why="its entries are damaged")
        return self

    @classmethod
    def from_entries(cls, shape: tuple[int, int], rows: Any, columns: Any, values: Any) -> SparseActs:
        """From parallel arrays of entries, in any order; `rows` are token positions."""
        rows, columns, values = (np.asarray(part) for part in (rows, columns, values))
        order = np.lexsort((columns, rows))
        indptr = np.zeros(shape[0] + 1, np.int64)
        np.cumsum(np.bincount(rows.astype(np.int64), minlength=shape[0]), out=indptr[1:])
        return cls(shape, indptr, columns[order], values[order])

    @classmethod
    def from_dense(cls, dense: np.ndarray) -> SparseActs:
        rows, columns = np.nonzero(dense)
        return cls.from_entries(dense.shape, rows, columns, dense[rows, columns])

    def to_dense(self) -> np.ndarray:
        """float32 [token, feature]."""
        dense = np.zeros(self.shape, np.float32)
        dense[self.rows, self.indices] = self.values
        return dense

    @property
    def nnz(self) -> int:
        return len(self.values)

    @property
    def rows(self) -> np.ndarray:
        """Token position of every entry, int64 [nnz]."""
        return np.repeat(np.arange(self.shape[0]), self.l0)

    @property
    def l0(self) -> np.ndarray:
        """Features on at each token, int64 [token]."""
        starts = self.indptr.astype(np.int64)
        return starts[1:] - starts[:-1]

    @property
    def features(self) -> np.ndarray:
        """The features that are on somewhere, ascending, uint32."""
        return np.unique(self.indices)

    def row(self, token: int) -> tuple[np.ndarray, np.ndarray]:
        """(features, values) at one token."""
        position = whole(token)
        if position is None or not 0 <= position < self.shape[0]:
            raise refuse("position-out-of-range", given=token, last=self.shape[0] - 1)
        part = slice(int(self.indptr[position]), int(self.indptr[position + 1]))
        return self.indices[part], self.values[part]

    def column(self, feature: int) -> np.ndarray:
        """One feature's activation at every token, float32 [token]."""
        index = whole(feature)
        if index is None or not 0 <= index < self.shape[1]:
            raise refuse("feature-out-of-range", index=feature, site="this site", last=self.shape[1] - 1)
        dense = np.zeros(self.shape[0], np.float32)
        here = self.indices == index
        dense[self.rows[here]] = self.values[here]
        return dense

    @classmethod
    def stack(cls, parts: Iterable[SparseActs]) -> SparseActs:
        """Rows of several one after the other; all must have the same width."""
        parts = list(parts)
        lengths = np.concatenate([part.l0 for part in parts])
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        return cls(
            (len(lengths), parts[0].shape[1]),
            indptr,
            np.concatenate([part.indices for part in parts]),
            np.concatenate([part.values for part in parts]),
        )

    def __repr__(self) -> str:
        tokens, width = self.shape
        mean = self.nnz / tokens if tokens else 0.0
        return f"SparseActs({tokens} tokens x {width} features, {self.nnz} on, {mean:.1f} per token)"
