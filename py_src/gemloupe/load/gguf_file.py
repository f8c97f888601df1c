"""GGUF files, read from memory: fields, and tensors dequantised a few rows at a time.

The gguf library's reader makes an array of every token of the vocabulary, which takes 15 seconds for Gemma's;
its arithmetic (gguf.quants) is used as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Buffer = bytes | bytearray | memoryview

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Tensor:
    """One stored tensor: `shape` with the slowest dimension first, `kind` a ggml type number, `start` in bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int


def read_gguf(data: Buffer) -> tuple[dict[str, Any], list[Tensor]]:
    """(fields, tensors) of a GGUF 2 or 3 file. `data` is trusted: its sha256 was checked."""
    view = memoryview(data)
    if view[:4] != b"GGUF":
        raise ValueError("not a GGUF file")
    cursor = _Cursor(view, 4)
    _version, n_tensors, n_fields = cursor.take("I"), cursor.take("Q"), cursor.take("Q")
    fields = {}
    for _ in range(n_fields):
        name = cursor.string()
        fields[name] = cursor.value(cursor.take("I"))
    found = []
    for _ in range(n_tensors):
        name = cursor.string()
        shape = tuple(cursor.take("Q") for _ in range(cursor.take("I")))[::-1]
        found.append(Tensor(name, shape, cursor.take("I"), cursor.take("Q")))
    alignment = fields.get("general.alignment", 32)
    base = -(-cursor.at // alignment) * alignment
    return fields, [Tensor(one.name, one.shape, one.kind, base + one.start) for one in found]


def dequantised(data: Buffer, tensor: Tensor, rows: int = 4096) -> Iterator[np.ndarray]:
    """The tensor as fp32 slices of at most `rows` rows (of its last dimension), in order."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    kind = GGMLQuantizationType(tensor.kind)
    block, size = GGML_QUANT_SIZES[kind]
    width = tensor.shape[-1]
    row_bytes = width // block * size
    n_rows = int(np.prod(tensor.shape[:-1]))
    stored = np.frombuffer(data, np.uint8, n_rows * row_bytes, tensor.start).reshape(n_rows, row_bytes)
    # quants.dequantize goes 16 rows at a time, which for a vocabulary is 16,000 small steps
    quantised = getattr(quants, kind.name, None)
    for first in range(0, n_rows, rows):
        part = stored[first : first + rows]
        yield quantised.dequantize_rows(part) if quantised else quants.dequantize(part, kind)


class _Cursor:
    def __init__(self, view: memoryview, at: int) -> None:
        self.view, self.at = view, at

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.view, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def string(self) -> str:
        length = self.take("Q")
        self.at += length
        return str(self.view[self.at - length : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.take(_SCALARS[kind])
        inner, count = self.take("I"), self.take("Q")
        if inner in _SCALARS:
            form = f"<{count}{_SCALARS[inner]}"
            self.at += struct.calcsize(form)
            return list(struct.unpack_from(form, self.view, self.at - struct.calcsize(form)))
        return [self.value(inner) for _ in range(count)]
