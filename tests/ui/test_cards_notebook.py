"""The notebook about what features mean, run from the top in a real JupyterLab."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from gemloupe.study.index.store import named_folder
from playwright.sync_api import expect

pytestmark = pytest.mark.ui
CARDS = Path(__file__).parents[2] / "notebooks" / "cards.ipynb"
OPEN, CONTRAST, CARD, TRY, LABEL, SEARCH, TWO, INDEX, OFTEN, MINE, BACK = 1, 3, 5, 7, 9, 10, 12, 14, 16, 17, 19


def test_the_notebook_of_cards_runs(notebook, tmp_path, shot):
    place = named_folder("kitchen-sentences")
    fresh = not place.exists()
    nb = notebook(path=CARDS)
    nb.page.set_viewport_size({"width": 1280, "height": 1600})
    nb.run_in_kernel(f"import os; os.environ['GEMLOUPE_DATA'] = {str(tmp_path)!r}")
    try:
        nb.run(OPEN)
        assert "Index('built-in'" in nb.text(OPEN)
        nb.run(CONTRAST)
        rows = nb.cell(CONTRAST).get_by_role("grid", name="Features found").locator("[role=row][data-feature]")
        expect(rows).to_have_count(12)
        nb.run(CARD)
        name = nb.cell(CARD).locator(".gl-card-name")
        expect(name).to_have_text(nb.run_in_kernel("print(feature)").strip())
        expect(nb.cell(CARD).get_by_text(re.compile("^strongest "))).to_be_visible()
        nb.run(TRY)
        assert "array(" in nb.text(TRY)
        expect(nb.cell(CARD).get_by_label("Try your own text")).to_have_value(re.compile("dreadful"))
        nb.run(LABEL)
        assert "source='user'" in nb.text(LABEL)
        expect(nb.cell(CARD).locator(".gl-label-text")).to_have_text("something turned out badly")
        shot(nb.cell(CARD).locator(".jp-OutputArea-output").last, "cards-notebook-card")
        nb.run(SEARCH)
        expect(nb.cell(SEARCH).get_by_text("something turned out badly")).to_be_visible()
        nb.run(TWO)
        expect(nb.cell(TWO).locator(".gl-card-name")).to_have_count(2)
        assert "cosine 0." in nb.text(TWO)
        nb.run(INDEX)
        assert "Index('kitchen-sentences'" in nb.text(INDEX)
        nb.run(OFTEN)
        assert len(re.findall(r"res\.12/\d+: \d+ times as often", nb.text(OFTEN))) == 5, nb.text(OFTEN)
        nb.run(MINE)
        expect(nb.cell(MINE).get_by_text("kitchen-sentences", exact=True)).to_be_visible()
        shot(nb.cell(MINE).locator(".jp-OutputArea-output").last, "cards-notebook-mine")
        nb.run(BACK)
        assert "Index('built-in'" in nb.text(BACK)
        for index in range(20):
            assert "Error" not in nb.text(index), nb.text(index)
    finally:
        if fresh:  # an index of that name that was there before is the user's
            shutil.rmtree(place, ignore_errors=True)
