"""Write the golden frames: what the kernel sends, and what it means. Run by hand when the wire changes.

A frame is {"name", "acts": a SparseActs as a static file carries it, "dense": [token][feature]}; both languages must
read `dense` out of `acts`. `colour.json` holds strengths, their opacities, and the palettes.
"""

import json
from pathlib import Path

import numpy as np
from gemloupe.sparse import SparseActs
from gemloupe.widgets.colour import PALETTES, opacity
from gemloupe.wire.arrays import as_json, read_sparse, sparse

HERE = Path(__file__).parent


def write(name: str, content: dict) -> None:
    (HERE / f"{name}.json").write_text(json.dumps({"name": name, **content}, indent=1) + "\n", encoding="utf-8")


def frame(name: str, acts: SparseActs) -> None:
    wire = as_json(sparse(acts))
    write(name, {"acts": wire, "dense": read_sparse(wire).to_dense().tolist()})


def main() -> None:
    small = np.zeros((5, 7), np.float32)
    small[0, 0] = 70_000.0  # feature 0 on token 0, beyond what float16 holds
    small[2, [0, 3, 6]] = 1.0, 0.004, 512.5  # the middle one becomes a float16 subnormal
    small[4, 6] = 31.25  # rows 1 and 3 stay empty
    frame("small", SparseActs.from_dense(small))

    wide = np.random.default_rng(0)
    rows = np.repeat(np.arange(3), 4)
    columns = np.concatenate([np.sort(wide.choice(70_000, 4, replace=False)) for _ in range(3)])
    columns[-1] = 69_999  # needs u4
    acts = SparseActs.from_entries((3, 70_000), rows, columns, wide.gamma(2, 50, 12).astype(np.float32))
    wire = as_json(sparse(acts))
    back = read_sparse(wire)
    # 70,000 columns are too many to write out: the ones that are on, in order, with their names
    named = back.features
    write("wide", {"acts": wire, "features": named.tolist(), "dense": back.to_dense()[:, named].tolist()})

    frame("nothing-on", SparseActs.from_dense(np.zeros((2, 4), np.float32)))

    strengths = [0.0, 1e-6, 0.01, 0.1, 0.25, 0.5, 0.82, 1.0, 1.7]
    palettes = {name: list(colour) for name, colour in PALETTES.items()}
    write("colour", {"strengths": strengths, "opacities": opacity(np.array(strengths)).tolist(), "palettes": palettes})


if __name__ == "__main__":
    main()
