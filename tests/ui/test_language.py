"""JupyterLab in Chinese: the sidebar, its commands and settings, widgets that follow; the sidebar by axe-core."""

from __future__ import annotations

import re

import pytest
from accessible import english, faults, outside, unseen
from lab import lab
from playwright.sync_api import expect
from test_sidebar import HAS_COMMAND, TEXT, Sidebar

pytestmark = pytest.mark.ui


@pytest.fixture(scope="module")
def server(root, tmp_path_factory):
    """A JupyterLab whose language is set to Chinese."""
    chinese = {"@jupyterlab/translation-extension:plugin": {"locale": "zh_CN"}}
    with lab(root, tmp_path_factory.mktemp("chinese"), chinese) as url:
        yield url


def test_the_sidebar_is_chinese_and_accessible_in_its_states(notebook, context, server, shot):
    page = context.new_page()
    page.goto(f"{server}/lab?reset")
    page.wait_for_function(HAS_COMMAND)
    card = page.locator(".jp-LauncherCard", has_text="导览")
    expect(card).to_have_attribute("title", "一个新的 gemloupe 导览笔记本")
    bar = Sidebar(page).open()
    bar.stands("none")
    found = {"none": faults(bar.node), "none Chinese": english(bar.node)}
    shot(page, "chinese-none")
    page.close()

    nb = notebook("import gemloupe as gl")
    nb.run(0)
    bar = Sidebar(nb.page).open()
    bar.stands("ready", "busy")
    found["ready"] = faults(bar.node)
    bar.button("需要多少资源").click()
    expect(bar.node.get_by_text("主机内存")).to_be_visible(timeout=60_000)
    found["plan Chinese"] = english(bar.node)
    shot(bar.node, "chinese-plan")
    bar.button("打开").click()
    text = bar.node.get_by_label("文本", exact=True)
    expect(text).to_be_visible(timeout=120_000)
    text.fill(TEXT)
    bar.button("词元").click()
    tokens = bar.node.get_by_role("listbox", name="词元").get_by_role("option")
    expect(tokens.last).to_have_text(re.compile("Paris"), timeout=60_000)
    tokens.last.click()
    bar.node.get_by_role("listbox", name="特征").get_by_role("option").first.click()
    found["view"] = faults(bar.node)
    found["view Chinese"] = english(bar.node, given=TEXT)
    found["view keyboard"] = unseen(bar.node)
    shot(nb.page, "chinese-view")
    bar.button("加入引导").click()
    expect(bar.node.get_by_role("slider").first).to_be_visible(timeout=60_000)
    found["desk Chinese"] = english(bar.node, given=TEXT)

    # A panel 240 pixels wide, in the dark.
    nb.command("apputils:change-theme", theme="JupyterLab Dark")
    expect(bar.node.locator(".gl-root").first).to_have_attribute("data-gl-theme", "dark")
    nb.page.evaluate(
        "() => window.jupyterapp.shell._leftHandler._sideBar && (window.jupyterapp.shell._hsplitPanel"
        ".setRelativeSizes([240, 1000]))"
    )
    nb.page.wait_for_timeout(600)
    found["desk dark"] = faults(bar.node)
    found["narrow"] = outside(bar.node)
    shot(bar.node, "chinese-narrow-dark")
    nb.command("apputils:change-theme", theme="JupyterLab Light")

    # The user's own choice in the notebook counts for its widgets.
    nb.run_in_kernel("gl.language('en')")
    expect(bar.node.get_by_role("button", name="Run", exact=True)).to_be_visible()

    # Settings are Chinese, too.
    nb.command("settingeditor:open", query="Gemloupe")
    expect(nb.page.get_by_text("启动页中的卡片")).to_be_visible()
    wrong = [f"{where}\n    " + "\n    ".join(some) for where, some in found.items() if some]
    assert not wrong, "\n".join(wrong)
