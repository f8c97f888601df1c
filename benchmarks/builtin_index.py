"""The index that ships with the built-in SAEs, remade after they were trained again.

    OMP_NUM_THREADS=2 python benchmarks/builtin_index.py OUT --install

reads the text that the built-in model wrote once more, and makes in OUT, one after the other: the index, what its
examples share (for automatic labels), the nearest features of every feature, and its matches in the layers before and
after. What is there already, and of these SAEs, is not made again: interrupted, the same command goes on where it was.
`--install` puts it in place of the index in the scope's folder; hand-given labels, which lie beside that in
labels.json, are carried over by `carry_labels.py`.

The text is that of the index that ships, token by token. `--texts` takes another: a folder of .npy files of token ids
[row, position], as `write_text.py` writes them. `--scope` is a folder of SAEs other than the package's, `--model` a
folder with the model where the built-in one cannot be converted, `--device cuda` works too, and `--parts` (index,
labels, neighbours, matches) makes only some.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gemloupe as gl
import numpy as np
from gemloupe.study.automatic import read_fires, write_fires
from gemloupe.study.index import Index
from gemloupe.study.index.build import Report, build
from gemloupe.study.matches import FILE as MATCHES
from gemloupe.study.matches import MatchFile, write_matches
from gemloupe.study.neighbours import FILE as NEIGHBOURS
from gemloupe.study.neighbours import NeighbourFile, write_neighbours

SHIPPED = Path(gl.__file__).parent / "scopes" / "gemma-3-270m"
PARTS = ("index", "labels", "neighbours", "matches")
LIMIT = 25e6  # bytes that the index may take in the package; what is computed from the SAEs alone is beside it


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


class Passages:
    """The passages of an index, in order."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __len__(self) -> int:
        return self._index.about.passages

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self._index.passage(number) for number in range(len(self)))


def said() -> Callable[[str, float], None]:
    """Says what is being done, now and then."""
    last = 0.0

    def say(what: str, share: float) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"{what}, {share:.0%}", flush=True)

    return say


def make(loupe: gl.Loupe, texts: Rows | Passages, out: Path, parts: list[str], tokens: int | None) -> Index:
    last = 0.0

    def tell(report: Report) -> None:
        nonlocal last
        if time.monotonic() - last > 10 or report.share == 1:
            last = time.monotonic()
            print(report, flush=True)

    def timed(what: str, work: Callable[[], object]) -> None:
        began = time.monotonic()
        work()
        print(f"{what}: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)

    widths, digests = loupe.about.widths, (loupe.about.about or {}).get("sae_digests") or {}
    if "index" in parts:
        timed("index", lambda: build(loupe.engine, texts, out, name="built-in", most=tokens, tell=tell))
    index = Index.open(out, made_for=loupe.about.about)
    if "labels" in parts and read_fires(out) is None:
        sites = [(site, index.width(site)) for site in index.sites]
        timed("labels", lambda: write_fires(sites, lambda feature: index.evidence(feature, 6), out, said()))
    if "neighbours" in parts and not fits(out / NEIGHBOURS, NeighbourFile, widths, digests):
        timed("neighbours", lambda: write_neighbours(loupe.engine, out, said()))
    if "matches" in parts and not fits(out / MATCHES, MatchFile, widths, digests):
        timed("matches", lambda: write_matches(loupe.engine, out, index, progress=said()))
    return index


def fits(file: Path, kind: type[NeighbourFile] | type[MatchFile], widths: dict, digests: dict) -> bool:
    return file.is_file() and kind(file).fits(widths, digests)


def install(made: Path, place: Path) -> None:
    """Whole, or not at all: what was there is kept until the new one stands."""
    coming, before = place.with_name(f".{place.name}.new"), place.with_name(f".{place.name}.before")
    for left in (coming, before):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(made, coming)
    if place.exists():
        place.replace(before)
    coming.replace(place)
    shutil.rmtree(before, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--scope", type=Path, default=SHIPPED)
    parser.add_argument("--model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--sites", help="only these, for a trial")
    parser.add_argument("--tokens", type=int, help="only so many, for a trial")
    asked = parser.parse_args()
    parts = asked.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    if asked.install and (asked.sites or asked.tokens or set(parts) != set(PARTS)):
        parser.error("what is only a trial, or only a part, is not installed")
    texts = Passages(Index.open(SHIPPED / "index")) if asked.texts is None else Rows(asked.texts)
    scope = None if asked.scope == SHIPPED and asked.model is None else asked.scope
    sites = None if asked.sites is None else asked.sites.split(",")
    options = {"scope": scope, "sites": sites, "device": asked.device, "dtype": "float32"}
    with gl.open(asked.model, **options) as loupe:
        index = make(loupe, texts, asked.out, parts, asked.tokens)
    sizes = {file.name: file.stat().st_size for file in asked.out.iterdir()}
    beside = sum(sizes.get(name, 0) for name in (NEIGHBOURS, MATCHES))
    own = sum(sizes.values()) - beside
    print(f"{index}\nindex and labels {own / 1e6:.1f} MB, neighbours and matches {beside / 1e6:.1f} MB in {asked.out}")
    for name in sorted(sizes, key=lambda name: -sizes[name])[:8]:
        print(f"  {name:<24} {sizes[name] / 1e6:6.2f} MB")
    if asked.install:
        if own > LIMIT:
            raise SystemExit(
                f"not installed: it must stay under {LIMIT / 1e6:.0f} MB. Try --tokens, or fewer examples."
            )
        install(asked.out, asked.scope / "index")
        print(f"installed in {asked.scope / 'index'}")


if __name__ == "__main__":
    main()
