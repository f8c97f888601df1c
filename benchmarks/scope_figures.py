"""Pictures of how good the built-in SAEs are, for docs/built-in-scope.md: L0 against delta loss, and FVU by layer.

    python benchmarks/scope_figures.py [--out docs] [--curve FILE.csv ...]

The numbers are those of the manifest that ships. A curve is a table from `gemloupe evaluate` of SAEs trained at other
L0s, drawn into the first picture. Needs a Chromium for Playwright (`make chromium`), which draws the plotly figures.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from gemloupe.load.find import BUILTIN_SCOPE
from gemloupe.load.scope import Scope
from gemloupe.site import Site
from gemloupe.train import figures
from gemloupe.train.evaluate import Evaluation
from playwright.sync_api import sync_playwright

NAMES = {field.name for field in fields(Evaluation)}


def shipped() -> dict[Site, Evaluation]:
    """What the manifest says of every site."""
    scope = Scope.open(BUILTIN_SCOPE)
    return {site: evaluation(scope.facts(site)) for site in scope.sites}


def curve(file: Path) -> dict[Site, Evaluation]:
    """A table of `gemloupe evaluate`."""
    with file.open(encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    return {Site.of(row["site"]): evaluation({k: v for k, v in row.items() if v}) for row in rows}


def evaluation(row: dict[str, Any]) -> Evaluation:
    """The manifest counts tokens and contexts of its own; the pictures need neither."""
    numbers = {name: float(value) for name, value in row.items() if name in NAMES}
    return Evaluation(**{"tokens": 0, "contexts": 0, **numbers, "width": int(numbers.get("width", 0))})


def draw(figure: go.Figure, png: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = figures.save(figure, Path(folder) / "figure.html")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 860, "height": 460}, device_scale_factor=1.5)
        page.goto(page_file.as_uri())
        page.wait_for_selector(".main-svg .legend")
        page.screenshot(path=png)
        browser.close()
    print(f"{png}: {png.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--curve", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    sets = [shipped(), *(curve(file) for file in given.curve)]
    names = ["built in", *(file.stem for file in given.curve)]
    draw(figures.l0_and_delta_loss(*sets, names=names), given.out / "built-in-l0.png")
    draw(figures.fvu_by_layer(sets[0]), given.out / "built-in-fvu.png")


if __name__ == "__main__":
    main()
