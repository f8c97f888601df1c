"""SearchResults in a real JupyterLab: choosing, ranking, a desk under the table, light and dark."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.ui

OPEN = "import gemloupe as gl\nloupe = gl.open(sites=['res', 'mlp'], layers=[6, 12])"
TEXT = 'w = loupe.search(text="It rains cats and dogs", k=12)\nw'
CONTRAST = 'c = loupe.contrast("The food was wonderful", "The food was terrible", k=4)\nc'


def found_in(cell):
    return cell.get_by_role("grid", name="Features found").locator("[role=row][data-feature]")


def test_results_choose_rank_and_steer(notebook, tmp_path, shot):
    elsewhere = f"import os\nos.environ['GEMLOUPE_DATA'] = {str(tmp_path)!r}\n"
    nb = notebook(elsewhere + OPEN, TEXT, CONTRAST)
    nb.run(0)
    nb.run(1)
    rows = found_in(nb.cell(1))
    expect(rows).to_have_count(12)
    rows.nth(2).click()
    expect(rows.nth(2)).to_have_attribute("aria-selected", "true")
    nb.wait_for_kernel("w.selected == w.features[2]")
    rows.nth(2).press("ArrowDown")
    expect(rows.nth(3)).to_be_focused()
    before = rows.all_inner_texts()
    nb.cell(1).get_by_label("Ranked by").select_option("raw")
    nb.wait_for_kernel("not w.relative")
    expect(rows).not_to_have_text(before)
    nb.run(2)
    groups = found_in(nb.cell(2))
    groups.first.wait_for()
    shot(nb.cell(2), "search-contrast-light")
    shot(nb.cell(1), "search-text-light")
    groups.nth(5).get_by_role("button", name="Steer with").click()
    nb.wait_for_kernel("c.desk is not None", seconds=30)
    nb.wait_for_kernel("c.desk.wait(60) is not None", seconds=90)
    expect(nb.cell(2).get_by_text("The food was").last).to_be_visible()
    expect(nb.cell(2).get_by_role("button", name="Close what is open below")).to_be_visible()
    shot(nb.cell(2), "search-desk-light")
    nb.command("apputils:change-theme", theme="JupyterLab Dark")
    expect(nb.cell(1).locator(".gl-root").first).to_have_attribute("data-gl-theme", "dark")
    nb.page.wait_for_timeout(600)
    shot(nb.cell(1), "search-text-dark")
    shot(nb.cell(2), "search-contrast-dark")
    nb.command("apputils:change-theme", theme="JupyterLab Light")
    nb.cell(2).get_by_role("button", name="Close what is open below").click()
    nb.wait_for_kernel("c.desk is None")
    expect(nb.cell(2).get_by_role("button", name="Close what is open below")).to_be_hidden()
