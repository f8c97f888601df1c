"""A server, a browser, and notebooks in them. Screenshots go to test-results/screenshots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import CHROMIUM, CHROMIUM_FLAGS, Notebook, lab, write_notebook
from playwright.sync_api import Browser, BrowserContext, sync_playwright

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "test-results" / "screenshots"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder the server shows."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="session")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with lab(root, tmp_path_factory.mktemp("home")) as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.fail("no Chromium on this machine: install it, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser: Browser, server: str) -> Iterator[BrowserContext]:
    """A fresh browser profile. Any request that would leave this machine is stopped, and fails the test."""
    fresh = browser.new_context(viewport={"width": 1280, "height": 900})
    fresh.set_default_timeout(30_000)
    left: list[str] = []

    def guard(route, request) -> None:
        if request.url.startswith((server, "data:", "blob:", "file:")):
            route.continue_()
        else:
            left.append(request.url)
            route.abort()

    fresh.route("**/*", guard)
    yield fresh
    fresh.close()
    assert not left, f"requests that leave the machine: {left}"


@pytest.fixture
def notebook(
    context: BrowserContext, server: str, root: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Notebook]]:
    """Opens a notebook with these cells in a new page and shuts its kernel down afterwards."""
    opened: list[Notebook] = []

    def make(*cells: str, path: Path | None = None) -> Notebook:
        name = path.name if path else f"{request.node.name}-{len(opened)}.ipynb"
        if path is None:
            write_notebook(root / name, *cells)
        elif path.parent != root:
            (root / name).write_bytes(path.read_bytes())
        opened.append(Notebook(context.new_page(), server, name).open())
        return opened[-1]

    yield make
    for one in opened:
        if not one.page.is_closed():
            # The theme is a setting of the server: a test that failed in the dark would leave it to the next.
            if one.page.evaluate("document.body.dataset.jpThemeLight === 'false'"):
                one.command("apputils:change-theme", theme="JupyterLab Light")
            one.shut_down()


@pytest.fixture
def shot() -> Callable[..., Path]:
    """Takes a screenshot of a page or a locator, by name."""

    def take(what, name: str) -> Path:
        SHOTS.mkdir(parents=True, exist_ok=True)
        path = SHOTS / f"{name}.png"
        what.screenshot(path=path)
        return path

    return take
