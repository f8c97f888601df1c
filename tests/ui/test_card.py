"""FeatureCard in a real JupyterLab: walking, labels, one's own text, examples, the desk, two cards, light and dark."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.ui

OPEN = "import gemloupe as gl\nloupe = gl.open()"
CARD = 'c = loupe.card("res.12/0")\nc'
BOTH = 'd = loupe.card("res.12/834", "mlp.9/0", text="I use the tool; it is used.")\nd'


@pytest.fixture
def opened(notebook, tmp_path):
    def show(*cells: str):
        elsewhere = f"import os\nos.environ['GEMLOUPE_DATA'] = {str(tmp_path)!r}\n"
        nb = notebook(elsewhere + OPEN, *cells)
        nb.page.set_viewport_size({"width": 1280, "height": 1800})
        nb.run(0)
        return nb

    return show


def name_of(cell):
    return cell.locator(".gl-card-name")


def examples_of(cell):
    return cell.get_by_role("list", name="Examples", exact=True).get_by_role("listitem")


def test_a_card_is_walked_labelled_and_tried(opened, shot):
    nb = opened(CARD)
    nb.run(1)
    cell = nb.cell(1)
    expect(name_of(cell)).to_have_text("res.12/0")
    expect(cell.get_by_role("img", name=re.compile("^Histogram of"))).to_be_visible()
    expect(cell.get_by_text(re.compile("^threshold "))).to_be_visible()
    expect(examples_of(cell)).to_have_count(20)
    expect(cell.get_by_role("list", name="Promoted tokens").get_by_role("listitem")).to_have_count(8)
    shot(cell, "card-light")

    # one's own text, live: only what was typed last is shown, and it is marked in the histogram
    box = cell.get_by_label("Try your own text")
    box.press_sequentially("for (int i = 0; i < n; i++) { sum += a[i]; }", delay=15)
    tokens = cell.get_by_role("listbox", name="Tokens").get_by_role("option")
    expect(tokens.last).to_have_text("}", timeout=30_000)
    nb.wait_for_kernel("c.reading['text'].endswith('}')", seconds=30)
    expect(cell.get_by_text(re.compile("^strongest "))).to_be_visible()
    expect(cell.get_by_text(re.compile("^your text "))).to_be_visible()
    assert nb.run_in_kernel("print(c.trace.text)").strip() == "for (int i = 0; i < n; i++) { sum += a[i]; }"

    # label, note, star
    cell.get_by_role("button", name="edit label").click()
    field = cell.get_by_label("Your label")
    field.fill("loops in C")
    field.press("Enter")
    expect(cell.locator(".gl-label-text")).to_have_text("loops in C")
    expect(cell.locator(".gl-label .gl-label-source")).to_have_text("yours")
    cell.get_by_role("button", name="Star it").click()
    cell.get_by_role("button", name="add note").click()
    note = cell.get_by_label("Your note")
    note.fill("looks at brackets")
    note.blur()
    nb.wait_for_kernel(
        "(c.label.text, c.note, c.starred, str(loupe.labels.starred()[0])) "
        "== ('loops in C', 'looks at brackets', True, 'res.12/0')"
    )

    # examples: by interval, a whole passage, more around
    cell.get_by_role("tab", name="by interval").click()
    expect(examples_of(cell)).to_have_count(25)
    cell.get_by_role("tab", name="strongest").click()
    first = examples_of(cell).first
    first.focus()
    short = len(first.inner_text())
    nb.page.keyboard.press("Enter")
    expect(first).to_have_attribute("aria-expanded", "true", timeout=30_000)
    assert len(first.inner_text()) > short
    shot(cell, "card-tried")
    nb.page.keyboard.press("Enter")
    expect(first).to_have_attribute("aria-expanded", "false")

    # to a companion and back; next by key; a feature that is not there is said
    kin = cell.get_by_role("list", name="Features that fire together").get_by_role("button").first
    other = kin.get_attribute("data-feature")
    kin.click()
    expect(name_of(cell)).to_have_text(other)
    nb.wait_for_kernel(f"str(c.feature) == {other!r} and c.trail == ['res.12/0']")
    expect(tokens.last).to_have_text("}")
    cell.get_by_role("button", name="Back").click()
    expect(name_of(cell)).to_have_text("res.12/0")
    name_of(cell).click()
    first.focus()
    nb.page.keyboard.press("j")
    expect(name_of(cell)).to_have_text("res.12/1")
    go = cell.get_by_label("Go to a feature")
    go.fill("res.12/99999")
    go.press("Enter")
    expect(cell.get_by_text(re.compile("features there are 0 to 2047"))).to_be_visible()
    go.fill("mlp.9/0")
    go.press("Enter")
    expect(name_of(cell)).to_have_text("mlp.9/0")
    expect(cell.get_by_text("99999")).to_have_count(0)


def test_an_ablation_runs_and_can_be_stopped(opened, shot):
    nb = opened('c = loupe.card("mlp.9/0")\nc')
    nb.run(1)
    cell = nb.cell(1)
    cell.get_by_role("button", name="measure the loss without it").click()
    expect(cell.get_by_role("list", name="Examples without it").get_by_role("listitem").first).to_be_visible(
        timeout=60_000
    )
    cell.get_by_role("button", name="stop", exact=True).click()
    expect(cell.get_by_text(re.compile("stopped after .* of 10 examples"))).to_be_visible(timeout=60_000)
    expect(cell.get_by_role("button", name="measure again")).to_be_visible()
    shot(cell, "card-ablated")


def test_two_cards_a_desk_and_the_dark(opened, shot):
    nb = opened(BOTH, "e = loupe.card('res.12/0')\ne")
    nb.run(1)
    cell = nb.cell(1)
    expect(name_of(cell)).to_have_text(["res.12/834", "mlp.9/0"])
    nb.wait_for_kernel("d.wait(60) is d", seconds=60)
    boxes = cell.get_by_label("Try your own text")
    boxes.nth(1).fill("He used it")
    boxes.nth(1).blur()
    expect(boxes.nth(0)).to_have_value("He used it")
    nb.wait_for_kernel("d.left.reading['text'] == d.right.reading['text'] == 'He used it'", seconds=30)
    shot(cell, "cards-light")
    left = nb.cell(1).locator(".gl-feature-card").first
    left.get_by_role("button", name="Next feature").click()
    expect(name_of(cell)).to_have_text(["res.12/835", "mlp.9/0"])

    nb.run(2)
    one = nb.cell(2)
    one.get_by_role("button", name="Steer with it").click()
    expect(one.get_by_role("button", name="Close what is open below")).to_be_visible(timeout=30_000)
    expect(one.get_by_role("list", name="Edits")).to_contain_text("res.12/0")
    one.get_by_role("button", name="Close what is open below").click()
    nb.wait_for_kernel("e.desk is None")
    expect(one.get_by_role("list", name="Edits")).to_have_count(0)

    nb.command("apputils:change-theme", theme="JupyterLab Dark")
    expect(left).to_have_attribute("data-gl-theme", "dark")
    nb.page.wait_for_timeout(600)
    shot(cell, "cards-dark")
    shot(one, "card-dark")
    nb.command("apputils:change-theme", theme="JupyterLab Light")


def test_the_saved_card_needs_no_kernel(opened, browser, tmp_path, shot):
    nb = opened(CARD + ".text = 'int i = 0;'", "c.wait(60)", "d = loupe.card('res.12/834', 'mlp.9/0')\nd")
    nb.run(1)
    nb.run(2)
    nb.run(3)
    nb.run_in_kernel(f"c.save_html({str(tmp_path / 'card.html')!r}); d.save_html({str(tmp_path / 'cards.html')!r})")
    offline = browser.new_context(offline=True, viewport={"width": 1100, "height": 900})
    page = offline.new_page()
    page.goto((tmp_path / "card.html").as_uri())
    expect(page.locator(".gl-card-name")).to_have_text("res.12/0")
    expect(examples_of(page)).to_have_count(20)
    expect(page.get_by_role("listbox", name="Tokens").get_by_role("option").last).to_have_text(";")
    expect(page.get_by_text(re.compile("^your text |^silent on all"))).to_be_visible()
    page.get_by_role("tab", name="by interval").click()
    expect(examples_of(page)).to_have_count(25)
    expect(page.get_by_role("button", name="Steer with it")).to_have_count(0)
    shot(page, "card-saved")
    page.goto((tmp_path / "cards.html").as_uri())
    expect(page.locator(".gl-card-name")).to_have_text(["res.12/834", "mlp.9/0"])
    shot(page, "cards-saved")
    offline.close()


def test_a_card_opens_under_a_text_and_under_results(opened, shot):
    nb = opened('w = loupe.heatmap("The soup was awful.")\nw', 's = loupe.search(text="The soup was awful.", k=6)\ns')
    nb.run(1)
    cell = nb.cell(1)
    cell.get_by_role("listbox", name="Tokens").get_by_role("option").nth(4).click()
    cell.get_by_role("listbox", name="Features").get_by_role("option").first.click()
    cell.get_by_role("button", name=re.compile("^Card of ")).click()
    expect(name_of(cell)).to_have_text(nb.run_in_kernel("print(w.selected.feature)").strip())
    expect(cell.get_by_text(re.compile(r"^strongest \d"))).to_be_visible()
    shot(cell, "heatmap-card")
    # keys pressed in the card are the card's: the selection above stays
    examples_of(cell).first.focus()
    before = nb.run_in_kernel("print(w.selected.feature)").strip()
    nb.page.keyboard.press("j")
    expect(name_of(cell)).not_to_have_text(before)
    assert nb.run_in_kernel("print(w.selected.feature)").strip() == before
    cell.get_by_role("button", name="Close what is open below").click()
    nb.wait_for_kernel("w.below is None")
    expect(name_of(cell)).to_have_count(0)

    nb.run(2)
    found = nb.cell(2)
    found.get_by_role("button", name=re.compile("^Card of ")).nth(1).click()
    expect(name_of(found)).to_have_text(nb.run_in_kernel("print(s.features[1])").strip())
    shot(found, "search-card")
    found.get_by_role("button", name=re.compile("^Steer with ")).nth(2).click()
    expect(name_of(found)).to_have_count(0)
    expect(found.get_by_role("list", name="Edits")).to_be_visible()
