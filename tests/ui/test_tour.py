"""The tour, run as a newcomer would, in a real JupyterLab."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.ui
TOUR = Path(__file__).parents[2] / "notebooks" / "tour.ipynb"
OPEN, HEATMAP, SELECTED, SELECT, TOP, FACTS, COLUMN, SECOND, TABLE, PANDAS = 1, 3, 5, 6, 8, 9, 10, 12, 14, 16


def test_the_tour_runs_and_its_pictures_answer(notebook, shot):
    tour = notebook(path=TOUR)
    tour.run(OPEN)
    assert "Loupe on gemma-3-270m" in tour.text(OPEN)

    tour.run(HEATMAP)
    cell = tour.cell(HEATMAP)
    tokens = cell.get_by_role("listbox", name="Tokens").get_by_role("option")
    expect(tokens).to_have_text(["<bos>", "The", "City", "of", "Light", "is", "Paris"])
    expect(tokens.last).to_have_attribute("aria-label", re.compile("token 7 of 7"))

    tokens.last.hover()
    card = tour.page.get_by_role("tooltip")
    expect(card).to_contain_text("strongest features")
    expect(card).to_contain_text("the model expects next")
    shot(tour.page, "tour-hover")

    tokens.last.click()
    features = cell.get_by_role("listbox", name="Features").get_by_role("option")
    features.first.wait_for()
    tour.wait_for_kernel("w.selected.position == 6")
    tour.run(SELECTED)
    assert "position=6" in tour.text(SELECTED)
    assert "' Paris'" in tour.text(SELECTED)

    name = features.first.get_attribute("aria-label")
    features.first.click()
    tour.wait_for_kernel("w.selected.feature is not None")
    tour.run(SELECTED)
    chosen = re.search(r"index=(\d+)", tour.text(SELECTED))
    assert chosen, tour.text(SELECTED)
    assert chosen[1] in name
    cell.scroll_into_view_if_needed()
    shot(cell.locator(".jp-OutputArea-output").last, "tour-heatmap")

    tour.run(SELECT)
    expect(tokens.last).to_have_attribute("aria-selected", "true")
    tour.run(TOP)
    assert "' Paris'" in tour.text(TOP)
    tour.run(FACTS)
    assert "promotes" in tour.text(FACTS)
    tour.run(COLUMN)
    assert "array(" in tour.text(COLUMN)
    tour.run(SECOND)
    expect(tour.cell(SECOND).get_by_role("listbox", name="Tokens")).to_contain_text("Louvre")
    listed = tour.cell(SECOND).get_by_role("listbox", name="Features").get_by_role("option")
    expect(listed.first.locator(".gl-chip").first).to_be_visible()
    shot(tour.cell(SECOND).locator(".jp-OutputArea-output").last, "tour-cities")
    tour.run(TABLE)
    rows = tour.cell(TABLE).get_by_role("row")
    rows.nth(1).wait_for()
    tour.cell(TABLE).scroll_into_view_if_needed()
    shot(tour.page, "tour-table")
    tour.run(PANDAS)
    assert "strength" in tour.text(PANDAS)
    for index in range(17):
        assert "Error" not in tour.text(index), tour.text(index)
