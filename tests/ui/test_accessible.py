"""Every widget by axe-core, in light and in dark; by keyboard; in Chinese; in half the width, and 240 pixels wide."""

from __future__ import annotations

import pytest
from accessible import english, faults, outside, unseen
from playwright.sync_api import expect

pytestmark = pytest.mark.ui

OPEN = "import gemloupe as gl\nloupe = gl.open()\nbest = loupe.read('The City of Light is Paris').top(3, site='res.12')"
CELLS = {
    "heatmap": "w = loupe.heatmap('The City of Light is Paris, the capital of France', selected=(3, None))\nw",
    "table": "loupe.table('The City of Light is Paris', site='res.12')",
    "desk": "d = loupe.steer('In the morning I', [gl.clamp(best[0].feature, 1.0), gl.ablate(best[1].feature)],"
    " max_new_tokens=4, controls=True)\nd",
    "card": "c = loupe.card(best[0].feature, text='The City of Light is Paris')\nc",
    "layers": "e = loupe.evolution('The City of Light is Paris', selected=(6, str(best[0].feature)))\ne",
    "search": "s = loupe.contrast('The food was wonderful', 'The food was terrible', k=4)\ns",
}


def test_every_widget_has_names_roles_contrast_and_chinese(notebook, tmp_path, shot):
    elsewhere = f"import os\nos.environ['GEMLOUPE_DATA'] = {str(tmp_path)!r}\n"
    nb = notebook(elsewhere + OPEN, *CELLS.values())
    nb.page.set_viewport_size({"width": 1280, "height": 1500})
    nb.page.emulate_media(reduced_motion="reduce")
    found: dict[str, list[str]] = {}
    parts = {}
    nb.run(0)
    for at, name in enumerate(CELLS, 1):
        nb.run(at)
        part = parts[name] = nb.cell(at).locator(".gl-root").first
        expect(part).to_be_visible(timeout=60_000)
    nb.wait_for_kernel("d.wait(60) is not None", seconds=90)
    nb.run_in_kernel("d.sweep(); d.wait(60); e.wait(30)")
    for theme in ("light", "dark"):
        if theme == "dark":
            nb.command("apputils:change-theme", theme="JupyterLab Dark")
            expect(parts["heatmap"]).to_have_attribute("data-gl-theme", "dark")
            nb.page.wait_for_timeout(600)
        for name, part in parts.items():
            found[f"{name} {theme}"] = faults(part)
            shot(part, f"accessible-{name}-{theme}")
    nb.run_in_kernel("e.view = 'grid'")
    expect(parts["layers"].get_by_role("radio", name="grid")).to_have_attribute("aria-checked", "true")
    found["grid dark"] = faults(parts["layers"])
    nb.command("apputils:change-theme", theme="JupyterLab Light")
    nb.run_in_kernel("e.view = 'layers'")

    # Tab reaches what can be done, and one sees where one is.
    for name, part in parts.items():
        found[f"{name} keyboard"] = unseen(part)

    # Widgets that are open speak Chinese as soon as that is chosen; what they show stays.
    nb.run_in_kernel("gl.language('zh')")
    for name, part in parts.items():
        expect(part.locator("xpath=..")).to_have_attribute("lang", "zh-CN")
        part.scroll_into_view_if_needed()
        found[f"{name} Chinese"] = english(part)
        shot(part, f"accessible-{name}-zh")
    expect(parts["heatmap"].get_by_role("listbox", name="词元").get_by_role("option").nth(3)).to_have_attribute(
        "aria-selected", "true"
    )

    # 200 % zoom halves the width that there is; the sidebar may be 240 pixels wide.
    for width in (600, 240):
        for name, part in parts.items():
            part.evaluate("(el, px) => { el.parentElement.style.width = `${px}px`; }", width)
            part.scroll_into_view_if_needed()
            nb.page.wait_for_timeout(150)
            found[f"{name} {width}"] = outside(part)
            shot(part, f"accessible-{name}-{width}")
    nb.run_in_kernel("gl.language('en')")
    expect(parts["heatmap"].get_by_role("listbox", name="Tokens")).to_be_visible()
    wrong = [f"{where}\n    " + "\n    ".join(some) for where, some in found.items() if some]
    assert not wrong, "\n".join(wrong)
