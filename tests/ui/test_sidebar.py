"""The sidebar in a real JupyterLab: no code typed, its states, its cells, one selection, and nothing left behind."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from tiny import tiny_model

pytestmark = pytest.mark.ui

TEXT = "The City of Light is Paris"
HAS_COMMAND = "() => window.jupyterapp?.commands?.hasCommand('gemloupe:open-sidebar')"
SHUT_ALL = """() => Promise.all([...window.jupyterapp.serviceManager.sessions.running()].map(
  (one) => window.jupyterapp.serviceManager.sessions.shutdown(one.id))).then(() => null)"""
OPEN_AND_CLOSE = """async (panel, times) => {
  const named = (name) => (one) => one.textContent === name || one.ariaLabel === name;
  const button = (name) => [...panel.querySelectorAll("button")].find(named(name));
  const views = () => panel.querySelectorAll(".gl-lab-view option").length;
  const until = async (what) => { while (!what()) await new Promise((resolve) => setTimeout(resolve, 10)); };
  const before = views();
  for (let i = 0; i < times; i++) {
    button("Tokens").click();
    await until(() => views() > before && panel.querySelector(".gl-lab-body .gl-token") && button("Close this view"));
    button("Close this view").click();
    await until(() => views() === before);
  }
}"""
LABEXTENSION = Path(__file__).parents[2] / "py_src" / "gemloupe" / "labextension"


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

    @property
    def text(self):
        return self.node.get_by_label("Text", exact=True)

    @property
    def tokens(self):
        return self.node.get_by_role("listbox", name="Tokens").get_by_role("option")

    @property
    def view(self):
        return self.node.get_by_role("combobox", name="View", exact=True)

    def open_model(self, name: str = "") -> None:
        self.stands("ready", "busy")
        self.node.get_by_label("Model to open").fill(name)
        self.button("Open").click()
        expect(self.text).to_be_visible(timeout=120_000)

    def read(self, text: str = TEXT):
        self.text.fill(text)
        self.button("Tokens").click()
        expect(self.tokens.last).to_have_text(re.compile(text.split()[-1]), timeout=60_000)
        return self.tokens


@pytest.fixture(autouse=True)
def patience():
    """What is waited for here takes a kernel or a page that loads: five seconds are few on a busy machine."""
    expect.set_options(timeout=30_000)
    yield
    expect.set_options(timeout=5_000)


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
    bar.stands("none")
    shot(page, "sidebar-none")
    bar.button("Start a kernel").click()
    bar.stands("ready", "busy")
    bar.button("What it costs").click()
    expect(bar.node.get_by_text("host memory")).to_be_visible(timeout=60_000)
    bar.button("Open").click()
    bar.button("Cancel").click()
    expect(bar.node.get_by_role("alert")).to_have_text("Opening was cancelled.", timeout=60_000)
    bar.open_model()
    tokens = bar.read()
    tokens.last.click()
    bar.node.get_by_role("listbox", name="Features").get_by_role("option").first.click()
    bar.button("Add to steering").click()
    desk = bar.node.locator(".gl-desk")
    expect(desk.get_by_role("slider").first).to_be_visible(timeout=60_000)
    expect(desk.get_by_role("status").filter(has_text="finished")).to_be_visible(timeout=90_000)
    default, steered = (desk.get_by_label(f"{arm} text").inner_text() for arm in ("default", "steered"))
    assert default and steered and default != steered
    shot(page, "sidebar-steering")
    bar.button("Layers").click()
    layers = page.locator(".gl-lab-tab .gl-layers")
    expect(layers).to_be_visible(timeout=60_000)

    # What was there is there after a reload: kernel, model, views, the text, and the tab.
    page.wait_for_timeout(1500)  # JupyterLab keeps its layout a moment after it changed
    page.goto(f"{server}/lab")
    page.wait_for_function(HAS_COMMAND)
    bar.stands("ready", "busy")
    expect(bar.text).to_have_value(TEXT)
    expect(layers).to_be_visible()
    bar.view.select_option(index=0)
    expect(tokens.last).to_have_attribute("aria-selected", "true")
    with page.expect_download() as saved:
        bar.button("PNG").click()
    assert saved.value.path().read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    # The picture has also what one scrolls to in a narrow panel.
    bar.view.select_option(index=2)
    plot = bar.node.locator(".gl-layers .gl-plot-scroll")
    expect(plot).to_be_visible()
    with page.expect_download() as saved:
        bar.button("PNG").click()
    wide = int.from_bytes(saved.value.path().read_bytes()[16:20], "big")
    assert wide > 2 * plot.evaluate("(el) => el.scrollWidth") > 4 * plot.evaluate("(el) => el.clientWidth")

    # The kernel goes, and the tab says so.
    page.evaluate(SHUT_ALL)
    expect(page.locator(".gl-lab-gone")).to_be_visible()
    bar.stands("none", "dead")


HIDE = """
import sys
class No:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "gemloupe":
            raise ModuleNotFoundError("No module named 'gemloupe'", name=name)
sys.meta_path.insert(0, No())
"""
OTHER = {
    "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "Other",
    "language": "julia",
}
THEIRS = "window.jupyterapp.shell.currentWidget.sessionContext"


def test_every_state_of_a_kernel_is_said_and_left_again(notebook, root, shot):
    spec = root / ".jupyter" / "kernels" / "other" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps(OTHER))
    nb = notebook("x = 1", "import time\nfor _ in range(6000): time.sleep(0.1)")  # until the kernel is restarted
    nb.run_in_kernel(HIDE)
    bar = Sidebar(nb.page).open()
    bar.stands("missing")
    expect(bar.node.get_by_text("%pip install 'gemloupe[builtin]'")).to_be_visible()
    shot(nb.page, "sidebar-missing")
    nb.run_in_kernel("del sys.meta_path[0]")
    bar.button("Try again").click()
    bar.stands("ready")

    nb.run_in_kernel("1")  # until the kernel no longer drops what comes after the failed import
    nb.run(1, wait=False)
    bar.stands("busy")
    bar.open_model()
    tokens = bar.read()
    tokens.last.click()
    expect(tokens.last).to_have_attribute("aria-selected", "true")
    bar.stands("busy")
    shot(nb.page, "sidebar-busy")
    nb.page.evaluate(f"void {THEIRS}.restartKernel()")
    bar.stands("restarting", "starting", "joining")
    bar.stands("ready")
    expect(bar.button("Open")).to_be_visible()
    expect(tokens).to_have_count(0)

    nb.page.evaluate(f"{THEIRS}.shutdown()")
    bar.stands("none")
    bar.button("Start the notebook's kernel").click()
    bar.stands("ready")
    nb.page.evaluate(f"{THEIRS}.changeKernel({{ name: 'other' }}).then(() => null)")
    bar.stands("language")
    expect(bar.node.get_by_text("This kernel speaks julia.")).to_be_visible()
    shot(nb.page, "sidebar-language")
    bar.button("Use a kernel of its own").click()
    bar.stands("ready")
    nb.page.evaluate(SHUT_ALL)


def test_a_notebooks_widgets_and_the_panels_are_one(sidebar, shot):
    nb, bar = sidebar(
        f"import gemloupe as gl\nloupe = gl.open()\nw = loupe.heatmap({TEXT!r})\nw",
        "d = loupe.steer('In the morning', max_new_tokens=400)\nd",
    )
    nb.run(0)
    bar.stands("ready")
    theirs = nb.cell(0).get_by_role("listbox", name="Tokens").get_by_role("option")
    # The loupe was opened after the sidebar joined.
    expect(bar.text).to_be_visible(timeout=60_000)
    tokens = bar.read()
    tokens.nth(3).click()
    expect(theirs.nth(3)).to_have_attribute("aria-selected", "true")
    theirs.last.click()
    expect(tokens.last).to_have_attribute("aria-selected", "true")
    shot(nb.page, "sidebar-shared")
    bar.button("Insert as cell").click()
    expect(nb.cell(1)).to_contain_text("made_with")
    nb.run(1)
    made = nb.cell(1).locator(".gl-heatmap")
    remade = made.get_by_role("listbox", name="Tokens").get_by_role("option")
    expect(remade.last).to_have_attribute("aria-selected", "true", timeout=60_000)
    shown = "(el) => [...el.querySelectorAll('.gl-token')].map((one) => [one.textContent, one.getAttribute('style')])"
    picture = bar.node.locator(".gl-heatmap").evaluate(shown)
    assert picture and made.evaluate(shown) == picture
    assert nb.run_in_kernel("import gemloupe.loupe as m; print(len(m.running()))").strip() == "1"
    bar.button("Close this view").click()
    expect(tokens).to_have_count(0)

    # A notebook's widget in the panel, and in a tab.
    nb.cell(0).locator(".gl-root").first.click(button="right", position={"x": 4, "y": 4})
    nb.page.get_by_role("menuitem", name="Show in the Gemloupe Panel").click()
    expect(tokens.last).to_have_attribute("aria-selected", "true")
    with nb.page.expect_download() as saved:
        bar.button("HTML").click()
    assert "Paris" in saved.value.path().read_text()
    nb.run(2)
    nb.command("gemloupe:open-in-tab")
    tab = nb.page.locator(".gl-lab-tab .gl-desk")
    expect(tab.get_by_label("default text")).to_have_text(re.compile("\\w+ \\w+"), timeout=60_000)
    nb.page.locator(".gl-lab-tab-area").get_by_role("button", name="Show in the panel").click()
    desk = bar.node.locator(".gl-desk")
    expect(desk).to_be_visible()

    # The page is loaded again while the text is written: it is still there, and can be stopped.
    nb.save()
    nb.page.wait_for_timeout(1500)
    nb.page.goto(f"{nb.url}/lab")
    nb.page.wait_for_function(HAS_COMMAND)
    expect(desk.get_by_label("default text")).to_have_text(re.compile("\\w+ \\w+"), timeout=60_000)
    bar.button("Stop").first.click()
    expect(desk.get_by_role("status").filter(has_text=re.compile("stopped|finished"))).to_be_visible()
    expect(tab).to_be_visible()
    shot(nb.page, "sidebar-reloaded")
    nb.page.evaluate(SHUT_ALL)


def test_two_notebooks_two_models_and_nothing_left_behind(sidebar, root, shot):
    folders = [tiny_model("gemma3", root / f"tiny-{i}", seed=i) for i in (1, 2)]
    nb, bar = sidebar("x = 1")
    bar.stands("ready")
    bar.open_model(str(folders[0]))
    bar.read("one a")
    nb.command("notebook:create-new", kernelName="python3")
    nb.wait_until_ready()
    bar.stands("ready")
    expect(bar.tokens).to_have_count(0)
    bar.open_model(str(folders[1]))
    model = bar.node.get_by_role("combobox", name="Model", exact=True)
    expect(model).to_contain_text("tiny-2")
    bar.read("two b")
    nb.command("docmanager:open", path=nb.name)
    expect(model).to_contain_text("tiny-1")
    expect(bar.tokens.last).to_have_text(re.compile("a$"))

    # Views opened and closed fifty times leave no listener, and nothing in the kernel.
    page = nb.page
    inspect = page.context.new_cdp_session(page)
    inspect.send("Performance.enable")

    def listeners() -> float:
        inspect.send("HeapProfiler.collectGarbage")
        found = {one["name"]: one["value"] for one in inspect.send("Performance.getMetrics")["metrics"]}
        return found["JSEventListeners"]

    def open_and_close(times: int) -> None:
        bar.node.evaluate(OPEN_AND_CLOSE, times)

    open_and_close(5)
    before = listeners()
    open_and_close(50)
    # A view has some sixty; JupyterLab itself gains or loses one now and then.
    assert listeners() - before < 100, "listeners are left behind by views that were closed"
    assert nb.run_in_kernel("from gemloupe.widgets.live import alive; print(len(alive()))").strip() == "1"
    page.evaluate(SHUT_ALL)


def test_the_extension_is_small():
    assert sum(file.stat().st_size for file in LABEXTENSION.rglob("*") if file.is_file()) < 300_000
