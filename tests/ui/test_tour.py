"""The tour, run as a newcomer would, in a real JupyterLab."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.ui
TOUR = Path(__file__).parents[2] / "notebooks" / "tour.ipynb"
OPEN, HEATMAP, SELECTED, SELECT, TOP, FACTS, COLUMN, SECOND, TABLE = 1, 3, 5, 6, 8, 9, 10, 12, 14


def test_the_tour_runs_and_its_picture_answers(notebook, shot):
    tour = notebook(path=TOUR)
    tour.run(OPEN)
    assert "Loupe on gemma-3-270m" in tour.text(OPEN)

    tour.run(HEATMAP)
    cell = tour.cell(HEATMAP)
    tokens = cell.get_by_role("listbox", name="Tokens").get_by_role("option")
    tokens.first.wait_for()
    assert [t.strip() for t in tokens.all_inner_texts()][-1] == "Paris"
    shot(tour.page, "tour-heatmap")

    paris = tokens.last
    paris.hover()
    tour.page.get_by_role("tooltip").wait_for()
    shot(tour.page, "tour-hover")
    paris.click()
    tour.run(SELECTED)
    assert "' Paris'" in tour.text(SELECTED)
    shot(tour.page, "tour-click")
