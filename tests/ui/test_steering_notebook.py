"""The notebook on steering, run from its top to its end in a real JupyterLab."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.ui
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "steering.ipynb"
OPEN, DESK, MADE, EFFECT, LANGUAGES, SWEEP, CONTROLS, WHERE, VECTOR, CODE, AGAIN = 1, 3, 5, 6, 8, 10, 12, 14, 16, 18, 19
PATIENCE = 120_000  # ms: the machine may be busy with other things


def test_it_is_kept_without_outputs():
    whole = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert "widgets" not in whole["metadata"]
    for cell in whole["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)


def test_the_notebook_runs_and_its_features_steer(notebook, shot):
    nb = notebook(path=NOTEBOOK)
    nb.run(OPEN)
    nb.run(DESK)
    desk = nb.cell(DESK).locator(".gl-desk")
    status = desk.locator(".gl-desk-status")
    expect(status).to_have_attribute("data-state", "finished", timeout=PATIENCE)
    nb.wait_for_kernel("desk._latest.wait(60) and len(desk.steered.tokens) == 36", seconds=120)
    academic = r"[Uu]niversit|[Cc]ollege|[Ff]aculty|[Pp]rofessor|PhD"
    expect(desk.get_by_role("group", name="steered text")).to_contain_text(re.compile(academic))
    expect(desk.get_by_role("group", name="default text")).not_to_contain_text(re.compile(academic))
    expect(desk.locator(".gl-edit-foot")).to_contain_text("of the tensor's norm")

    for index in (MADE, EFFECT, LANGUAGES, SWEEP):
        nb.run(index)
    assert re.search(academic, nb.text(MADE))
    assert "acted at 39 of 41 tokens" in nb.text(EFFECT)
    lines = dict(line.split(maxsplit=1) for line in nb.text(LANGUAGES).splitlines() if line.strip())
    for language, words in (
        ("Indonesian", r"\b(saya|yang|dan|di|itu|untuk)\b"),
        ("German", r"\b(die|und|der|das|ich|von)\b"),
        ("French", r"\b(le|la|de|les|et|mes)\b"),
        ("Chinese", "[\u4e00-\u9fff]{8}"),
    ):
        assert re.search(words, lines[language]), lines
    assert re.search(r"0\.5 +works", nb.text(SWEEP)) and "breaks" in nb.text(SWEEP)

    nb.run(CONTROLS)
    beside = nb.cell(CONTROLS).locator(".gl-desk")
    expect(beside.locator(".gl-desk-status")).to_have_attribute("data-state", "finished", timeout=PATIENCE)
    expect(beside.locator(".gl-gen")).to_have_count(4)
    for index in (WHERE, VECTOR, CODE, AGAIN):
        nb.run(index)
    assert "gl.ablate('res.12/1711', where='prompt') changed nothing" in nb.text(WHERE)
    assert nb.text(VECTOR).count("\n") >= 1
    assert "gl.clamp('res.9/118', 1.0)" in nb.text(CODE)
    again = nb.cell(AGAIN).locator(".gl-desk")
    expect(again.locator(".gl-edit-name")).to_have_text("res.9/118")
    expect(again.locator(".gl-banner")).to_have_count(0)
    for index in range(20):
        assert "Traceback" not in nb.text(index), nb.text(index)

    # the picture in docs/steering.md
    nb.wait_for_kernel("desk._latest.wait(60)", seconds=120)
    desk.get_by_role("button", name="sweep").click()
    expect(desk.locator(".gl-dose tbody tr")).to_have_count(10, timeout=2 * PATIENCE)
    nb.page.set_viewport_size({"width": 1280, "height": 1500})
    desk.scroll_into_view_if_needed()
    shot(desk, "steering")
