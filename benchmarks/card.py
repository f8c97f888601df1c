"""How long a feature's card takes to open from an index, to turn to another feature, and to read a text.

    python benchmarks/card.py [--cards 50] [--index FOLDER]

Of the built-in SAEs and the index that ships with them, or one in FOLDER. `open` is `loupe.card(...)`, `and its saved
picture` what showing it in a notebook adds: the card as HTML, with the names of the features beside it. Labels are kept
in a folder of their own meanwhile. Prints one table.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXT = "The City of Light is Paris, and the river runs through it on its way to the sea."


def milliseconds(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = run()
    return 1e3 * (time.perf_counter() - began), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cards", type=int, default=50)
    parser.add_argument("--index", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GEMLOUPE_DATA"] = folder
        measure(given.cards, given.index)


def measure(cards: int, folder: Path | None) -> None:
    import gemloupe as gl

    times: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        spent, found = milliseconds(run)
        times.setdefault(name, []).append(spent)
        return found

    with gl.open() as loupe:
        index = loupe.index_in_use if folder is None else loupe.use(folder)
        assert index is not None, "there is no index: give one with --index"
        print(index)
        draw = random.Random(0)

        def any_feature() -> str:
            site = draw.choice(index.sites)
            return f"{site}/{draw.randrange(index.width(site))}"

        for _ in range(cards):
            card = timed("open", lambda: loupe.card(any_feature()))
            timed("and its saved picture", lambda card=card: card.to_html(page=False))
            timed("turn to the next feature", card.next)
            timed("turn to one of another site", lambda card=card: card.go(any_feature()))
        for end in range(20, len(TEXT)):

            def read(text: str = TEXT[:end]) -> None:
                card.text = text
                card.wait(60)

            timed("read a text of up to 20 tokens", read)

    print(f"{'':<34}{'first ms':>10}{'median ms':>11}{'slowest other':>15}")
    for name, spent in times.items():
        print(f"{name:<34}{spent[0]:>10.0f}{statistics.median(spent):>11.0f}{max(spent[1:]):>15.0f}")


if __name__ == "__main__":
    main()
