"""Arrays and sparse activations as they cross to the browser: little-endian buffers with a dtype and a shape.

An array is `{"dtype", "shape", "data"}`; ipywidgets lifts `data` out of the message as a binary buffer. The other
half is js/core/wire.ts; tests/wire holds frames that both read.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from ..sparse import SparseActs

_LEAST = 2.0**-24  # the smallest float16 above 0
_DTYPES = ("u1", "u2", "u4", "i4", "f2", "f4")


def array(values: Any, dtype: str) -> dict[str, Any]:
    """`values` as a wire array of `dtype` (u1 u2 u4 i4 f2 f4)."""
    assert dtype in _DTYPES, dtype
    packed = np.asarray(values, dtype=f"<{dtype}", order="C")
    return {"dtype": dtype, "shape": list(packed.shape), "data": packed.reshape(-1).view(np.uint8).data}


def whole_numbers(values: Any) -> dict[str, Any]:
    """Whole numbers in the narrowest unsigned type that holds them."""
    values = np.asarray(values)
    return array(values, "u2" if values.size == 0 or int(values.max()) < 1 << 16 else "u4")


def sparse(acts: SparseActs) -> dict[str, Any]:
    """`SparseActs` as CSR, values in float16 times one scale.

    Raw activations of Gemma 3 pass float16's 65,504, so they cross divided by the largest one: relative error
    at most 2**-11 down to 1/16,000 of the largest.
    """
    scale = float(acts.values.max()) if acts.nnz else 1.0
    return {
        "shape": list(acts.shape),
        "indptr": array(acts.indptr, "u4"),
        "indices": whole_numbers(acts.indices),
        # what is on stays on, however weak: 0 would mean off
        "values": array(np.maximum(acts.values / scale, _LEAST), "f2"),
        "scale": scale,
    }


def maxima(acts: SparseActs, known: np.ndarray) -> dict[str, Any]:
    """The largest known activation of each feature that is on in `acts`, by ascending feature; nan is unknown.

    Which features those are is not sent: the browser sees them in the activations. Values are float16 times a scale.
    """
    values = np.asarray(known[acts.features], np.float32)
    scale = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    return {"values": array(values / scale, "f2"), "scale": scale}


def read_array(wire: dict[str, Any]) -> np.ndarray:
    """A wire array back as numpy; `data` may be a buffer, or `base64` text as in a static file."""
    data = base64.b64decode(wire["base64"]) if "base64" in wire else wire["data"]
    return np.frombuffer(data, dtype=f"<{wire['dtype']}").reshape(wire["shape"])


def read_sparse(wire: dict[str, Any]) -> SparseActs:
    values = read_array(wire["values"]).astype(np.float32) * np.float32(wire["scale"])
    tokens, width = wire["shape"]
    return SparseActs((tokens, width), read_array(wire["indptr"]), read_array(wire["indices"]), values)


def as_json(state: Any) -> Any:
    """`state` with every buffer as base64 text, ready for json.dumps: how a static file carries arrays."""
    if isinstance(state, dict):
        if isinstance(state.get("data"), (bytes, memoryview)) and "dtype" in state:
            rest = {key: value for key, value in state.items() if key != "data"}
            return rest | {"base64": base64.b64encode(state["data"]).decode("ascii")}
        return {key: as_json(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [as_json(value) for value in state]
    return state


def size(state: Any) -> int:
    """Bytes of all buffers in a message."""
    if isinstance(state, (bytes, memoryview)):
        return len(state)
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(size(part) for part in parts)
