"""The JupyterLab extension: its command, its launcher card, its setting."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import lab
from playwright.sync_api import expect

pytestmark = pytest.mark.ui
TOUR = Path(__file__).parents[2] / "notebooks" / "tour.ipynb"
HAS_COMMAND = "() => window.jupyterapp?.commands?.hasCommand('gemloupe:open-tour')"


def open_launcher(page, url: str) -> None:
    page.goto(f"{url}/lab?reset")
    page.wait_for_function(HAS_COMMAND)
    page.wait_for_selector(".jp-Launcher")


def test_the_launcher_card_opens_the_tour(context, server, root, shot):
    folder = root / "notebooks"
    folder.mkdir(exist_ok=True)
    (folder / "tour.ipynb").write_bytes(TOUR.read_bytes())
    page = context.new_page()
    open_launcher(page, server)
    card = page.locator(".jp-LauncherCard", has_text="Tour")
    expect(card).to_be_visible()
    shot(page, "launcher")
    card.click()
    expect(page.get_by_role("heading", name="A loupe for a language model")).to_be_visible(timeout=15_000)
    page.evaluate("window.jupyterapp.shell.currentWidget?.sessionContext?.shutdown?.()")


def test_without_the_tour_the_command_says_where_it_looked(context, tmp_path, browser):
    empty = tmp_path / "empty"
    empty.mkdir()
    with lab(empty, tmp_path / "home", {"gemloupe:plugin": {"showLauncherCard": False}}) as url:
        context.unroute("**/*")
        page = context.new_page()
        open_launcher(page, url)
        expect(page.locator(".jp-LauncherCard", has_text="Tour")).to_have_count(0)
        page.evaluate("window.jupyterapp.commands.execute('gemloupe:open-tour').then(() => null)")
        expect(page.get_by_role("alert").get_by_text("No tour here")).to_be_visible()
