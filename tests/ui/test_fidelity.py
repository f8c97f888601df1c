"""The corner light in a real JupyterLab: measured while reading, at a key, in the dark, wrong tensors red, static."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.ui

TEXT = "The City of Light is Paris, and the river runs through it on its way to the sea. In the morning it is quiet."
OPEN = "import gemloupe as gl\nloupe = gl.open()"
SHOW = f'w = loupe.heatmap("{TEXT}", site="mlp.9")\nw'
# An SAE of the MLP's output after its norm, on the output before it.
WRONG = f"""
from gemloupe.run import capture
real = capture.module_of
def before_its_norm(model, site):
    found = real(model, site)
    return (capture.body(model).layers[site.layer].mlp, *found[1:]) if site.kind == "mlp" else found
capture.module_of = before_its_norm
bad = loupe.heatmap(loupe.read({TEXT!r}), site="res.9")
bad
"""


def test_the_light_says_whether_the_sae_fits(notebook, shot, tmp_path):
    nb = notebook(OPEN, SHOW, WRONG)
    nb.run(0)
    nb.run(1)
    light = nb.cell(1).locator(".gl-light")
    expect(light).to_have_text("SAE fits")
    shot(nb.cell(1), "light-green")
    # by keyboard: the reason opens, and Escape closes it
    light.focus()
    nb.page.keyboard.press("Enter")
    why = nb.cell(1).locator(".gl-light-reason")
    expect(why).to_contain_text("declared")
    nb.page.keyboard.press("Escape")
    expect(why).to_be_hidden()
    # another site is measured when it is looked at
    nb.cell(1).locator(".gl-heatmap").press("]")
    expect(light).to_have_attribute("data-light", "green")
    nb.wait_for_kernel("w.fidelity is not None and w.fidelity['site'] == w.site != 'mlp.9'")
    # an SAE on the wrong tensor comes out red and says so without being asked
    nb.run(2)
    nb.run_in_kernel("bad.site = 'mlp.9'")
    red = nb.cell(2).locator(".gl-light")
    expect(red).to_have_attribute("data-light", "red")
    expect(nb.cell(2).locator(".gl-light-reason")).to_contain_text("another tensor")
    shot(nb.cell(2), "light-red")
    nb.command("apputils:change-theme", theme="JupyterLab Dark")
    expect(nb.cell(2).locator(".gl-root")).to_have_attribute("data-gl-theme", "dark")
    shot(nb.cell(2), "light-dark")
    page = tmp_path / "bad.html"
    page.write_text(nb.run_in_kernel("print(bad.to_html())"))
    still = nb.page.context.new_page()
    still.goto(page.as_uri())
    expect(still.locator(".gl-light")).to_have_text("SAE does not fit")
    shot(still, "light-static")
    still.close()
