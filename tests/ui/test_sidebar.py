"""The sidebar in a real JupyterLab: no code typed, its states, its cell, one selection, and nothing left behind."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.ui

TEXT = "The City of Light is Paris"
HAS_COMMAND = "() => window.jupyterapp?.commands?.hasCommand('gemloupe:open-sidebar')"


class Sidebar:
    """The panel in a page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.node = page.get_by_role("region", name="Gemloupe")

    def open(self) -> Sidebar:
        self.page.wait_for_function(HAS_COMMAND)
        self.page.evaluate("window.jupyterapp.commands.execute('gemloupe:open-sidebar').then(() => null)")
        expect(self.node).to_be_visible()
        return self

    def button(self, name: str):
        return self.node.get_by_role("button", name=name, exact=True)

    def stands(self, *standings: str, seconds: float = 60) -> None:
        expect(self.node).to_have_attribute("data-standing", re.compile("|".join(standings)), timeout=seconds * 1000)

    def open_model(self) -> None:
        self.stands("ready", "busy")
        self.button("Open").click()
        expect(self.node.get_by_label("Text")).to_be_enabled(timeout=120_000)

    def read(self, text: str = TEXT):
        self.node.get_by_label("Text").fill(text)
        self.button("Tokens").click()
        tokens = self.node.get_by_role("listbox", name="Tokens").get_by_role("option")
        expect(tokens.last).to_have_text(re.compile(text.split()[-1]), timeout=60_000)
        return tokens


@pytest.fixture
def sidebar(notebook):
    def make(*cells: str):
        nb = notebook(*cells)
        return nb, Sidebar(nb.page).open()

    return make


def test_from_the_launcher_to_a_steered_text_without_code(context, server, shot):
    page = context.new_page()
    page.goto(f"{server}/lab?reset")
    page.wait_for_function(HAS_COMMAND)
    page.locator(".jp-LauncherCard", has_text="Gemloupe").first.click()
    bar = Sidebar(page)
    expect(bar.node).to_be_visible()
    bar.stands("none")
    shot(page, "sidebar-none")
    bar.button("Start a kernel").click()
    bar.open_model()
    tokens = bar.read()
    tokens.last.click()
    bar.node.get_by_role("listbox", name="Features").get_by_role("option").first.click()
    bar.button("Add to steering").click()
    expect(bar.node.get_by_role("slider").first).to_be_visible(timeout=60_000)
    shot(page, "sidebar-steering")
    page.evaluate(
        "Promise.all([...window.jupyterapp.serviceManager.sessions.running()]"
        ".map(s => window.jupyterapp.serviceManager.sessions.shutdown(s.id))).then(() => null)"
    )


def test_a_busy_a_restarted_and_a_bare_kernel(sidebar, shot):
    busy = "import time\nfor _ in range(600): time.sleep(0.1)"
    nb, bar = sidebar("x = 1", busy)
    bar.stands("ready")
    nb.run(1, wait=False)
    bar.stands("busy")
    bar.open_model()
    tokens = bar.read()
    tokens.last.click()
    expect(tokens.last).to_have_attribute("aria-selected", "true")
    bar.stands("busy")
    shot(nb.page, "sidebar-busy")
    nb.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.restartKernel().then(() => null)")
    bar.stands("ready")
    expect(bar.button("Open")).to_be_visible()
    expect(tokens).to_have_count(0)

    # A kernel in which the package is not: the sidebar says so, and goes on once it is.
    hide = "import sys\nclass No:\n  def find_spec(self, name, *_):\n"
    hide += "    if name.startswith('gemloupe'): raise ModuleNotFoundError(\"No module named 'gemloupe'\", name=name)\n"
    hide += "sys.modules.pop('gemloupe.lab', None); sys.modules.pop('gemloupe', None); no = No()\n"
    nb.run_in_kernel(hide + "[sys.modules.pop(n) for n in list(sys.modules) if n.startswith('gemloupe')]")
    nb.run_in_kernel("sys.meta_path.insert(0, no)")
    bar.node.get_by_role("combobox", name="Kernel", exact=True).select_option("own")
    bar.stands("none")
    bar.node.get_by_role("combobox", name="Kernel", exact=True).select_option("follow")
    bar.stands("missing")
    expect(bar.node.get_by_text("%pip install 'gemloupe[builtin]'")).to_be_visible()
    shot(nb.page, "sidebar-missing")
    nb.run_in_kernel("sys.meta_path.remove(no)")
    bar.button("Try again").click()
    bar.stands("ready")


def test_the_notebooks_loupe_is_found_shares_its_selection_and_gets_a_cell(sidebar, shot):
    nb, bar = sidebar(f"import gemloupe as gl\nloupe = gl.open()\nw = loupe.heatmap({TEXT!r})\nw")
    nb.run(0)
    bar.stands("ready")
    theirs = nb.cell(0).get_by_role("listbox", name="Tokens").get_by_role("option")
    # The loupe was opened after the sidebar joined.
    expect(bar.node.get_by_label("Text")).to_be_enabled(timeout=60_000)
    tokens = bar.read()
    tokens.nth(3).click()
    expect(theirs.nth(3)).to_have_attribute("aria-selected", "true")
    theirs.last.click()
    expect(tokens.last).to_have_attribute("aria-selected", "true")
    shot(nb.page, "sidebar-shared")
    bar.button("Insert as cell").click()
    expect(nb.cell(1)).to_contain_text("made_with")
    nb.run(1)
    made = nb.cell(1).get_by_role("listbox", name="Tokens").get_by_role("option")
    expect(made.last).to_have_attribute("aria-selected", "true", timeout=60_000)
    assert made.all_inner_texts() == tokens.all_inner_texts()
    assert nb.run_in_kernel("import gemloupe.loupe as m; print(len(m.running()))").strip() == "1"
    bar.button("Close").click()
    expect(tokens).to_have_count(0)
    with nb.page.expect_download() as saved:
        bar.read()
        bar.button("Save as HTML").click()
    assert "Paris" in saved.value.path().read_text()
