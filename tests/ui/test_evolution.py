"""LayerEvolution in a real JupyterLab: scrubbing, following, what leads to a next token, a card, the grid, files."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.ui

OPEN = "import gemloupe as gl\nloupe = gl.open()"
TEXT = 'w = loupe.evolution("The City of Light is Paris, and the capital of France is")\nw'
LONG = 'long = loupe.evolution("The sun rises over the hills and the river. " * 200, guesses=1)\nlong'
# Nothing reaches the kernel until release(): a picture that follows meanwhile needs no answer from there.
HOLD = """() => {
  const held = [];
  const send = WebSocket.prototype.send;
  WebSocket.prototype.send = function (...given) { held.push([this, given]); };
  window.release = () => {
    WebSocket.prototype.send = send;
    for (const [socket, given] of held) socket.send(...given);
  };
}"""
# Milliseconds from a key to a picture that has been laid out, for each of n keys.
SCRUB = """async ([line, n]) => {
  const times = [];
  for (let i = 0; i < n; i++) {
    const start = performance.now();
    const key = { key: "ArrowLeft", bubbles: true, composed: true, cancelable: true };
    line.dispatchEvent(new KeyboardEvent("keydown", key));
    line.closest(".gl-root").getBoundingClientRect();
    times.push(performance.now() - start);
    await new Promise((done) => requestAnimationFrame(done));
  }
  return times;
}"""
# Seconds from running a cell to the frame in which its picture stands, for a picture that was not there before.
PICTURE = """async (index) => {
  const app = window.jupyterapp;
  const content = app.shell.currentWidget.content;
  const block = () => content.widgets[index].node.querySelector(".gl-block");
  const before = block();
  content.activeCellIndex = index;
  content.deselectAll();
  const start = performance.now();
  const ran = app.commands.execute("notebook:run-cell");
  for (;;) {
    await new Promise((done) => requestAnimationFrame(done));
    const now = block();
    if (now && now !== before && now.getBoundingClientRect().width) break;
  }
  const seconds = (performance.now() - start) / 1000;
  await ran;
  return seconds;
}"""


def block(cell, name):
    return cell.locator(f'.gl-block[data-feature="{name}"]')


def test_a_text_from_layer_to_layer(notebook, tmp_path, shot):
    elsewhere = f"import os\nos.environ['GEMLOUPE_DATA'] = {str(tmp_path)!r}\n"
    nb = notebook(elsewhere + OPEN, TEXT)
    nb.run(0)
    cell = nb.cell(1)
    plot = cell.get_by_role("listbox", name="Features by layer")
    for what in ("first", "second"):
        print(f"from text to picture, the {what} time: {nb.page.evaluate(PICTURE, 1):.2f} s")
    expect(plot.get_by_role("option").first).to_be_visible()
    nb.wait_for_kernel("w.wait(60)", seconds=90)
    assert cell.locator(".gl-ribbon").count() > 10
    shot(cell, "evolution-light")

    tokens = cell.get_by_role("listbox", name="Tokens")
    blocks = plot.get_by_role("option")
    last = blocks.evaluate_all("all => all.map(one => one.dataset.feature)")
    nb.page.evaluate(HOLD)
    times = nb.page.evaluate(SCRUB, [tokens.element_handle(), 8])
    print(f"a scrub takes {sorted(times)[4]:.1f} ms (median of 8), {max(times):.1f} ms at most")
    expect(cell.locator('.gl-scrub [aria-selected="true"]')).to_have_text("is")
    assert blocks.evaluate_all("all => all.map(one => one.dataset.feature)") != last
    nb.page.evaluate("window.release()")
    nb.wait_for_kernel("w.selected.position == 5")
    # Press, and move over the text.
    paris = tokens.get_by_role("option", name="Paris")
    tokens.get_by_role("option", name="City").hover()
    nb.page.mouse.down()
    paris.hover()
    nb.page.mouse.up()
    nb.wait_for_kernel("w.selected.token.text == ' Paris'")

    # Hover says what it is, a click follows it, the keyboard goes on from there.
    first = plot.get_by_role("option").first
    name = first.get_attribute("data-feature")
    first.hover()
    expect(cell.get_by_role("tooltip")).to_contain_text(name)
    shot(cell, "evolution-hover")
    first.click()
    nb.wait_for_kernel(f"str(w.selected.feature) == {name!r}")
    expect(cell.locator(".gl-inspect")).to_contain_text(name)
    shot(cell, "evolution-follow")
    first.press("ArrowRight")
    nb.page.keyboard.press("Enter")
    nb.wait_for_kernel(f"str(w.selected.feature) != {name!r}")
    nb.page.keyboard.press("Escape")
    nb.wait_for_kernel("w.selected.feature is None")

    # Only what leads to the next token, from the kernel.
    tokens.press("End")
    choice = cell.get_by_label("Keep only what leads to")
    choice.select_option(index=1)
    nb.wait_for_kernel("w.found is not None", seconds=60)
    expect(cell.locator(".gl-leads")).to_contain_text("of their sum")
    assert cell.locator(".gl-edge").count() > 0
    shot(cell, "evolution-leads")
    source = cell.locator(".gl-block[data-sign]").first
    source.click()
    cell.get_by_role("button", name="take it out and measure").click()
    nb.wait_for_kernel("sum(edge.measured is not None for edge in w.found.edges) == 1", seconds=60)
    expect(cell.locator(".gl-inspect")).to_contain_text("measured")
    shot(cell, "evolution-checked")
    source.press("Escape")
    cell.get_by_role("button", name="show all features").click()
    nb.wait_for_kernel("w.found is None")
    expect(cell.locator(".gl-leads")).to_be_hidden()

    # Its card, below.
    block(cell, plot.get_by_role("option").first.get_attribute("data-feature")).click()
    cell.get_by_role("button", name="open its card").click()
    nb.wait_for_kernel("w.card is not None", seconds=30)
    expect(cell.get_by_role("button", name="Close what is open below")).to_be_visible()
    expect(cell.locator(".gl-below .gl-root")).to_be_visible()
    cell.get_by_role("button", name="Close what is open below").click()
    nb.wait_for_kernel("w.card is None")

    # Files.
    def save(kind):
        with nb.page.expect_download() as saved:
            cell.get_by_role("button", name=f"Save the picture as {kind}").click()
        path = tmp_path / saved.value.suggested_filename
        saved.value.save_as(path)
        return path

    assert save("PNG").read_bytes()[:4] == b"\x89PNG"
    assert save("SVG").read_text().startswith("<svg")

    cell.get_by_role("radio", name="grid").click()
    nb.wait_for_kernel("w.view == 'grid'")
    expect(cell.locator("canvas")).to_be_visible()
    cell.locator("canvas").click(position={"x": 200, "y": 90})
    expect(cell.locator(".gl-grid-said")).to_contain_text("layer")
    shot(cell, "evolution-grid")
    assert save("PNG").read_bytes()[:4] == b"\x89PNG"
    drawn = save("SVG").read_text()
    assert "res.17" in drawn and "Paris" in drawn
    cell.get_by_role("radio", name="layers").click()

    nb.command("apputils:change-theme", theme="JupyterLab Dark")
    expect(cell.locator(".gl-root").first).to_have_attribute("data-gl-theme", "dark")
    nb.page.wait_for_timeout(600)
    shot(cell, "evolution-dark")
    nb.command("apputils:change-theme", theme="JupyterLab Light")
    nb.page.set_viewport_size({"width": 760, "height": 900})
    nb.page.wait_for_timeout(600)
    shot(cell, "evolution-narrow")


def test_two_thousand_tokens(notebook, tmp_path, shot):
    elsewhere = f"import os\nos.environ['GEMLOUPE_DATA'] = {str(tmp_path)!r}\n"
    nb = notebook(elsewhere + OPEN, LONG)
    nb.run(0)
    nb.run(1)
    cell = nb.cell(1)
    tokens = cell.get_by_role("listbox", name="Tokens")
    expect(tokens).to_be_visible(timeout=120_000)
    assert int(nb.run_in_kernel("print(len(long.evolution.trace))")) == 2002
    times = nb.page.evaluate(SCRUB, [tokens.element_handle(), 20])
    print(f"2,002 tokens: a scrub takes {sorted(times)[10]:.1f} ms (median of 20), {max(times):.1f} ms at most")
    assert cell.locator(".gl-scrub-token").count() < 200
    assert int(nb.run_in_kernel("print(len(long._repr_mimebundle_()[0]['text/html']))")) < 3_000_000
    shot(cell, "evolution-long")
