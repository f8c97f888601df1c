"""How long a search by words takes over millions of labelled features.

    python benchmarks/search.py --features 32700000 --folder /some/disk

The labels are made up: five to nine words of a vocabulary whose frequencies fall as those of a language do, and every
fiftieth in Chinese. Prints one table; nothing is asserted. The file is removed afterwards unless --keep is given.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from gemloupe.site import Site
from gemloupe.study.labels import Known, Labels

SITES = [Site(kind, layer) for layer in range(42) for kind in ("att", "mlp", "res")]
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "or")]
WORDS = 50_000
CHINESE = (
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多日都三小"
    "军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从"
)


def word(number: int) -> str:
    parts = []
    number += 1
    while number:
        number, rest = divmod(number, len(SYLLABLES))
        parts.append(SYLLABLES[rest])
    return "".join(parts)


def labels(count: int, vocabulary: np.ndarray, draw: np.random.Generator) -> list[str]:
    # The n-th most frequent word is drawn about 1/n as often as the first.
    drawn = np.minimum(np.exp(draw.random(count * 9) * np.log(WORDS)).astype(int), WORDS - 1)
    lengths = draw.integers(5, 10, count)
    chinese = np.array(list(CHINESE))
    made, at = [], 0
    for i, length in enumerate(lengths.tolist()):
        if i % 50 == 0:
            made.append("".join(chinese[np.minimum(drawn[at : at + 8] // 5, len(chinese) - 1)]))
        else:
            made.append(" ".join(vocabulary[drawn[at : at + length]]))
        at += length
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="gemloupe-search-"))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "labels.sqlite"
    each = given.features // len(SITES)
    saes = {site: Known(each) for site in SITES}
    vocabulary = np.array([word(i) for i in range(WORDS)], dtype=object)
    draw = np.random.default_rng(0)
    if not file.exists():
        started = time.perf_counter()
        store = Labels.open(file, saes=saes)
        for site in SITES:
            texts = labels(each, vocabulary, draw)
            store.put_automatic(site, "benchmark", ((i, text, "") for i, text in enumerate(texts)))
            print(f"\r{site}: {time.perf_counter() - started:.0f} s", end="", flush=True)
        store.optimize()
        store.close()
        seconds = time.perf_counter() - started
        print(f"\n{each * len(SITES):,} labels written in {seconds:.0f} s, {each * len(SITES) / seconds:,.0f} a second")
    print(f"file: {file.stat().st_size / 1e9:.2f} GB")
    started = time.perf_counter()
    store = Labels.open(file, saes=saes)
    print(f"opened in {1000 * (time.perf_counter() - started):.1f} ms")
    queries = {
        "a word that most labels have": word(1),
        "a common word": word(50),
        "a rare word": word(40_000),
        "two common words": f"{word(20)} {word(60)}",
        "a common and a rare word": f"{word(3)} {word(30_000)}",
        "three words": f"{word(2)} {word(9)} {word(200)}",
        "the beginning of a word": word(30_000)[:4],
        "a word that is not there": "xylophone",
        "two Chinese characters": CHINESE[:2],
        "four Chinese characters": CHINESE[2:6],
        "one Chinese character": CHINESE[40],
    }
    print(f"{'query':32} {'found':>6} {'of a sample':>12} {'first ms':>9} {'median ms':>10}")
    for name, query in queries.items():
        report(name, lambda query=query: store.search(query))
    report("a common word, at one site", lambda: store.search(word(50), sites=SITES[60]))
    store.close()
    if not given.keep and given.folder is None:
        shutil.rmtree(folder)
    elif not given.keep:
        for part in folder.glob("labels.sqlite*"):
            part.unlink()


def report(name, ask) -> None:
    times = []
    for _ in range(7):
        started = time.perf_counter()
        found = ask()
        times.append(1000 * (time.perf_counter() - started))
    sampled = "yes" if found and not found[0].complete else "no"
    print(f"{name:32} {len(found):6} {sampled:>12} {times[0]:9.1f} {statistics.median(times[1:]):10.1f}", flush=True)


if __name__ == "__main__":
    main()
