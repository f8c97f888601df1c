"""The JupyterLab extension: the tour, its launcher card, its setting."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from lab import lab
from playwright.sync_api import expect

pytestmark = pytest.mark.ui
TOUR = Path(__file__).parents[2] / "notebooks" / "tour.ipynb"
HAS_COMMAND = "() => window.jupyterapp?.commands?.hasCommand('gemloupe:new-tour')"


def open_launcher(page, url: str) -> None:
    page.goto(f"{url}/lab?reset")
    page.wait_for_function(HAS_COMMAND)
    page.wait_for_selector(".jp-Launcher")


def test_the_launcher_card_makes_a_notebook_with_the_tour(context, server, root, shot):
    page = context.new_page()
    open_launcher(page, server)
    card = page.locator(".jp-LauncherCard", has_text="Tour")
    expect(card).to_be_visible()
    shot(page, "launcher")
    card.click()
    expect(page.get_by_role("heading", name="A loupe for a language model")).to_be_visible(timeout=15_000)
    made = nbformat.read(root / "gemloupe-tour.ipynb", as_version=4)
    assert [cell.source for cell in made.cells] == [cell.source for cell in nbformat.read(TOUR, as_version=4).cells]
    page.evaluate("window.jupyterapp.shell.currentWidget?.sessionContext?.shutdown?.()")


def test_the_launcher_offers_nothing_where_that_is_set(context, tmp_path, browser):
    empty = tmp_path / "empty"
    empty.mkdir()
    with lab(empty, tmp_path / "home", {"gemloupe:plugin": {"showLauncherCard": False}}) as url:
        context.unroute("**/*")
        page = context.new_page()
        open_launcher(page, url)
        expect(page.locator(".jp-LauncherCard", has_text="Python 3").first).to_be_visible()
        page.wait_for_timeout(300)
        for name in ("Tour", "Gemloupe"):
            expect(page.locator(".jp-LauncherCard", has_text=name)).to_have_count(0)
        page.get_by_role("menuitem", name="File", exact=True).click()
        page.locator(".lm-Menu-item[data-type=submenu]", has_text="New").first.hover()
        page.get_by_role("menuitem", name="Gemloupe Tour Notebook").click()
        expect(page.get_by_role("heading", name="A loupe for a language model")).to_be_visible(timeout=15_000)
        page.evaluate("window.jupyterapp.shell.currentWidget?.sessionContext?.shutdown?.()")
