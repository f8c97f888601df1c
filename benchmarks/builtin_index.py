"""The index that ships with the built-in SAEs, from the text that the built-in model wrote (`write_text.py`).

    OMP_NUM_THREADS=1 python benchmarks/builtin_index.py TEXT_FOLDER OUT [--sites res.5,mlp.9]

TEXT_FOLDER holds .npy files of token ids [row, position]; OUT is where the index goes, for the package
py_src/gemloupe/scopes/gemma-3-270m/index. Interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import gemloupe as gl
import numpy as np
from gemloupe.study.automatic import write_fires
from gemloupe.study.index.build import Report, build
from gemloupe.study.neighbours import write_neighbours


class Rows:
    """The rows of all batches, in the order of their seeds; one batch in memory at a time."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.npy"), key=lambda file: (len(file.stem), file.stem))
        self._rows = sum(len(np.load(file, mmap_mode="r")) for file in self._files)

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[np.ndarray]:
        for file in self._files:
            yield from np.load(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sites", help="only these, for a trial")
    parser.add_argument("--tokens", type=int, help="only so many, for a trial")
    asked = parser.parse_args()
    rows, last = Rows(asked.texts), 0.0

    def tell(report: Report) -> None:
        nonlocal last
        if time.monotonic() - last > 10 or report.share == 1:
            last = time.monotonic()
            print(report, flush=True)

    sites = None if asked.sites is None else asked.sites.split(",")
    with gl.open(sites=sites, device="cpu") as loupe:
        index = build(loupe.engine, rows, asked.out, name="built-in", most=asked.tokens, tell=tell)
        write_neighbours(loupe.engine, asked.out)
        write_fires([(site, index.width(site)) for site in index.sites], index.evidence, asked.out)
    size = sum(file.stat().st_size for file in asked.out.iterdir())
    print(f"{index}\n{size / 1e6:.1f} MB in {asked.out}")
    for file in sorted(asked.out.iterdir(), key=lambda file: -file.stat().st_size)[:8]:
        print(f"  {file.name:<24} {file.stat().st_size / 1e6:6.2f} MB")


if __name__ == "__main__":
    main()
