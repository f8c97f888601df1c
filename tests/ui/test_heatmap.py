"""TokenHeatmap in a real JupyterLab: selection both ways, second views, reopening, dead and busy kernels, themes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

pytestmark = pytest.mark.ui

OPEN = "import gemloupe as gl\nloupe = gl.open()"
SHOW = 'w = loupe.heatmap("The City of Light is Paris")\nw'
SILENT = re.compile("The kernel does not answer")


def tokens_of(where: Locator | Page) -> Locator:
    return where.get_by_role("listbox", name="Tokens").get_by_role("option")


def features_of(where: Locator | Page) -> Locator:
    return where.get_by_role("listbox", name="Features").get_by_role("option")


def colours(tokens: Locator) -> list[str]:
    return tokens.evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")


@pytest.fixture
def shown(notebook):
    def show(*more: str):
        one = notebook(OPEN, SHOW, *more)
        one.run(0)
        one.run(1)
        tokens_of(one.cell(1)).first.wait_for()
        return one

    return show


def test_clicking_a_feature_recolours_without_the_kernel(shown, shot):
    nb = shown()
    tokens, features = tokens_of(nb.cell(1)), features_of(nb.cell(1))
    before = colours(tokens)
    tokens.nth(2).click()
    features.first.wait_for()
    # nothing that happens now can be an answer of the kernel: it is stopped in its tracks
    nb.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.sendShellMessage = () => {}")
    features.nth(1).click()
    expect(features.nth(1)).to_have_attribute("aria-selected", "true")
    assert colours(tokens) != before
    assert colours(tokens)[0] == before[0], "BOS is never coloured"


def test_keyboard_walks_tokens_and_features(shown):
    nb = shown()
    tokens, features = tokens_of(nb.cell(1)), features_of(nb.cell(1))
    tokens.nth(1).focus()
    nb.page.keyboard.press("ArrowRight")
    expect(tokens.nth(2)).to_be_focused()
    nb.page.keyboard.press("Enter")
    expect(tokens.nth(2)).to_have_attribute("aria-selected", "true")
    nb.page.keyboard.press("j")
    expect(features.first).to_have_attribute("aria-selected", "true")
    nb.page.keyboard.press("j")
    expect(features.nth(1)).to_have_attribute("aria-selected", "true")
    nb.page.keyboard.press("k")
    expect(features.first).to_have_attribute("aria-selected", "true")
    nb.wait_for_kernel("w.selected.position == 2")
    nb.page.keyboard.press("Escape")
    expect(tokens.nth(2)).to_have_attribute("aria-selected", "false")


def test_selection_from_python_and_refusals(shown):
    nb = shown("w.selected = 0", "w.selected = 99")
    tokens = tokens_of(nb.cell(1))
    nb.run_in_kernel("w.selected = ' Light'")
    expect(tokens.nth(4)).to_have_attribute("aria-selected", "true")
    nb.run(2)
    expect(tokens.nth(0)).to_have_attribute("aria-selected", "true")
    nb.run(3)
    assert "positions are 0 to 6" in nb.text(3)
    expect(tokens.nth(0)).to_have_attribute("aria-selected", "true")
    nb.run_in_kernel("w.selected = None")
    expect(tokens.nth(0)).to_have_attribute("aria-selected", "false")


def test_changing_the_site(shown):
    nb = shown()
    sites = nb.run_in_kernel("print(*w.sites)").split()
    other = next(site for site in sites if site != nb.run_in_kernel("print(w.site)").strip())
    nb.cell(1).get_by_role("combobox").first.select_option(other)
    nb.wait_for_kernel(f"w.site == {other!r}")
    nb.run_in_kernel(f"w.selected = '{sites[0]}/0'")
    expect(nb.cell(1).get_by_role("combobox").first).to_have_value(sites[0])


def test_a_second_view_follows_the_first(shown):
    nb = shown("w")
    nb.run(2)
    first, second = tokens_of(nb.cell(1)), tokens_of(nb.cell(2))
    second.nth(6).click()
    expect(first.nth(6)).to_have_attribute("aria-selected", "true")
    first.nth(6).click()
    expect(second.nth(6)).to_have_attribute("aria-selected", "false")


def test_a_busy_kernel_still_answers(shown):
    nb = shown("import time\ntime.sleep(15)")
    nb.run(2, wait=False)
    nb.page.wait_for_timeout(500)
    tokens_of(nb.cell(1)).nth(6).click()
    first = features_of(nb.cell(1)).first
    # the promoted tokens come from the kernel, while the cell sleeps
    expect(first.locator(".gl-chip").first).to_be_visible(timeout=8_000)
    expect(nb.cell(2).locator(".jp-InputPrompt")).to_have_text("[*]:")


def test_a_dead_kernel_leaves_the_picture_and_says_so(shown, shot):
    nb = shown()
    tokens = tokens_of(nb.cell(1))
    tokens.nth(1).click()
    nb.shut_down()
    nb.page.wait_for_timeout(300)
    tokens.nth(6).click()
    expect(nb.cell(1).get_by_text(SILENT)).to_be_visible(timeout=25_000)
    expect(tokens.nth(6)).to_have_attribute("aria-selected", "true")
    features_of(nb.cell(1)).nth(1).click()
    expect(features_of(nb.cell(1)).nth(1)).to_have_attribute("aria-selected", "true")
    shot(nb.cell(1), "dead-kernel")


def test_reloading_the_page_keeps_the_selection(shown):
    nb = shown()
    nb.run_in_kernel("w.selected = (' Paris', None)")
    nb.save()
    nb.page.reload()
    nb.page.wait_for_selector(".jp-Notebook .jp-Cell")
    nb.wait_until_ready()
    expect(tokens_of(nb.cell(1)).nth(6)).to_have_attribute("aria-selected", "true", timeout=30_000)


def test_reopened_without_its_kernel_the_picture_is_still_there(shown, shot):
    nb = shown()
    nb.run_in_kernel("w.selected = ' Paris'")
    nb.run(1)
    nb.save()
    nb.shut_down()
    nb.page.wait_for_timeout(1000)
    nb.open()
    output = nb.cell(1).locator(".jp-OutputArea")
    expect(output).to_contain_text("Paris", timeout=30_000)
    expect(output).to_contain_text("Light")
    expect(output.get_by_text("Error displaying widget")).to_have_count(0)
    shot(nb.cell(1), "reopened")


def test_hostile_text_stays_text(notebook, shot):
    nb = notebook(
        OPEN,
        'text = \'<img src=x onerror="window.hit=1"></script><script>window.hit=1</script> \\u202etxt.exe\\u202c '
        "\\u05e9\\u05dc\\u05d5\\u05dd \\u0645\\u0631\\u062d\\u0628\\u0627 \\U0001f469\\u200d\\U0001f680 a\\n\\n\\tb e"
        + "\\u0301" * 40
        + "'\nh = loupe.heatmap(text)\nh",
    )
    nb.run(0)
    nb.run(1)
    tokens_of(nb.cell(1)).first.wait_for()
    assert nb.page.evaluate("window.hit") is None
    assert nb.cell(1).locator(".jp-OutputArea-output img").count() == 0
    shot(nb.cell(1), "hostile-text")


def test_a_thousand_tokens(notebook, shot):
    nb = notebook(OPEN, 'long = loupe.heatmap("The river was wide and the boat was slow. " * 100)\nlong')
    nb.run(0)
    nb.run(1)
    tokens = tokens_of(nb.cell(1))
    tokens.first.wait_for(timeout=60_000)
    assert tokens.count() > 1000
    tokens.nth(3).click()
    features = features_of(nb.cell(1))
    features.first.wait_for()
    slowest = nb.page.evaluate(
        """async () => {
          const options = [...document.querySelectorAll('[role=listbox][aria-label=Features] [role=option]')];
          let slowest = 0;
          for (const option of options.slice(0, 8)) {
            const start = performance.now();
            option.click();
            await new Promise((r) => requestAnimationFrame(() => setTimeout(r)));
            slowest = Math.max(slowest, performance.now() - start);
          }
          return slowest;
        }"""
    )
    print(f"recolouring {tokens.count()} tokens: at most {slowest:.0f} ms to the next frame")
    shot(nb.page, "thousand-tokens")


def test_dark_theme(shown, shot):
    nb = shown()
    tokens_of(nb.cell(1)).nth(6).click()
    light = colours(tokens_of(nb.cell(1)))
    nb.command("apputils:change-theme", theme="JupyterLab Dark")
    nb.page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    for _ in range(50):  # the picture hears of the theme a moment after the page
        if colours(tokens_of(nb.cell(1))) != light:
            break
        nb.page.wait_for_timeout(200)
    assert colours(tokens_of(nb.cell(1))) != light
    shot(nb.page, "dark")
    nb.command("apputils:change-theme", theme="JupyterLab Light")


def test_exported_html_shows_the_same_picture_offline(notebook, root: Path, browser, shot):
    nb = notebook(OPEN, 'w = loupe.heatmap("The City of Light is Paris", selected=" Paris")\nw')
    nb.run(0)
    nb.run(1)
    tokens_of(nb.cell(1)).first.wait_for()
    nb.page.wait_for_timeout(500)
    nb.save()
    nb.page.wait_for_timeout(500)
    path = root / nb.name
    subprocess.run([sys.executable, "-m", "nbconvert", "--to", "html", path.name], cwd=root, check=True)
    # nbconvert's own page asks a CDN for MathJax and require.js; our picture must not need them
    offline = browser.new_context(offline=True, viewport={"width": 1000, "height": 700})
    page = offline.new_page()
    page.goto(path.with_suffix(".html").as_uri())
    tokens = tokens_of(page)
    expect(tokens).to_have_text(["<bos>", "The", "City", "of", "Light", "is", "Paris"])
    expect(tokens.nth(6)).to_have_attribute("aria-selected", "true")
    features_of(page).first.click()
    expect(features_of(page).first).to_have_attribute("aria-selected", "true")
    shot(page, "exported")
    offline.close()
