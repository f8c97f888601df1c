"""SteeringDesk in a real JupyterLab: streaming, Stop, busy and dead kernels, reload, second views, deleted cells."""

from __future__ import annotations

import re

import ipykernel
import pytest
from playwright.sync_api import Locator, expect

pytestmark = pytest.mark.ui

OPEN = "import gemloupe as gl\nloupe = gl.open()"
FEATURE = "res.12/834"
LONG = 400  # tokens: more than any test waits for
PATIENCE = 90_000  # ms: the machine may be busy with other things

# Milliseconds from the key to the first token of the new run, and from the click to the run's end.
FIRST_TOKEN = """async ([desk, key]) => {
  const slider = desk.querySelector('input[type=range]');
  const steered = desk.querySelector('.gl-gen-steered');
  const start = performance.now();
  slider.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, composed: true, cancelable: true }));
  let begun = false;
  while (performance.now() - start < 60000) {
    await new Promise((r) => setTimeout(r, 4));
    // the last text is pale until the new run has a token
    const pale = steered.classList.contains('gl-gen-stale');
    if (begun && !pale) return performance.now() - start;
    begun ||= pale;
  }
  return null;
}"""
STOPPED = """async (desk) => {
  const status = desk.querySelector('.gl-desk-status');
  const start = performance.now();
  desk.querySelector('.gl-stop').click();
  while (performance.now() - start < 60000) {
    await new Promise((r) => setTimeout(r, 4));
    if (status.dataset.state === 'stopped') return performance.now() - start;
  }
  return null;
}"""


def status_of(desk: Locator) -> Locator:
    return desk.locator(".gl-desk-status")


def expect_state(desk: Locator, state: str) -> None:
    expect(status_of(desk)).to_have_attribute("data-state", state, timeout=PATIENCE)


def steered(desk: Locator) -> Locator:
    return desk.get_by_role("group", name="steered text")


@pytest.fixture
def shown(notebook):
    """A notebook with a desk that generates `tokens` tokens."""

    def show(*more: str, tokens: int = 12, options: str = ""):
        steer = (
            f'd = loupe.steer("In the morning I like to", [gl.clamp("{FEATURE}", 1.0)], '
            f"max_new_tokens={tokens}{options})\nd"
        )
        one = notebook(OPEN, steer, *more)
        one.run(0)
        one.run(1)
        desk = one.cell(1).locator(".gl-desk")
        desk.wait_for(timeout=PATIENCE)
        return one, desk

    return show


def test_steering_live(shown, shot):
    nb, desk = shown(tokens=LONG)
    expect(steered(desk).locator(".gl-token").nth(3)).to_be_visible(timeout=PATIENCE)
    expect_state(desk, "running")
    shot(nb.cell(1), "steering-streaming")
    handle = desk.element_handle()
    for key in ("ArrowRight", "ArrowUp"):
        took = nb.page.evaluate(FIRST_TOKEN, [handle, key])
        print(f"slider to the first new token: {took:.0f} ms")
    expect(desk.get_by_role("slider")).to_have_attribute("aria-valuetext", re.compile(r"^1\.10 times"))
    took = nb.page.evaluate(STOPPED, handle)
    print(f"Stop to stopped: {took:.0f} ms")
    nb.wait_for_kernel("d._latest.wait(5) and d.current['state'] == 'stopped'", seconds=60)

    # finished: effects, words, colours
    nb.run_in_kernel("d.sampling = {**d.sampling, 'max_new_tokens': 10}")
    desk.get_by_role("button", name="Run", exact=True).click()
    expect_state(desk, "finished")
    expect(desk.locator(".gl-edit-foot")).to_contain_text(
        re.compile("of the tensor's norm|No effect"), timeout=PATIENCE
    )
    expect(desk.locator(".gl-movers")).not_to_be_empty(timeout=PATIENCE)
    desk.scroll_into_view_if_needed()
    shot(desk, "steering-finished")

    # by keyboard alone
    slider = desk.get_by_role("slider")
    slider.focus()
    nb.page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", re.compile(r"^-4\.00 times"))
    nb.page.keyboard.press("0")
    nb.wait_for_kernel("d.edits[0].strength == 0", seconds=60)
    desk.get_by_role("radio", name="clamp").focus()
    nb.page.keyboard.press("ArrowRight")
    nb.wait_for_kernel("d.edits[0].kind == 'scale'", seconds=60)

    # refusals stand where they belong
    desk.get_by_role("textbox", name="Feature to add").fill("res.12/99999999")
    nb.page.keyboard.press("Enter")
    expect(desk.locator(".gl-add-problem")).to_contain_text("does not exist")
    nb.run_in_kernel(f"d.edits = [gl.clamp('{FEATURE}', 1.0), gl.clamp('{FEATURE}', 2.0)]")
    expect(desk.locator(".gl-edit-problem").nth(1)).to_contain_text("gl.clamp", timeout=PATIENCE)
    shot(desk, "steering-error")

    # dark, narrow, and with nothing to steer
    nb.run_in_kernel(f"d.edits = gl.clamp('{FEATURE}', 1.5)")
    expect_state(desk, "finished")
    nb.command("apputils:change-theme", theme="JupyterLab Dark")
    nb.page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    nb.page.wait_for_timeout(500)
    shot(desk, "steering-dark")
    nb.command("apputils:change-theme", theme="JupyterLab Light")
    desk.evaluate("desk => { desk.style.width = '400px'; }")
    nb.page.wait_for_timeout(300)
    assert desk.evaluate("desk => desk.scrollWidth <= 401"), "something sticks out at 400 px"
    shot(desk, "steering-narrow")
    desk.evaluate("desk => { desk.style.width = ''; }")
    nb.run_in_kernel("d.edits = []")
    expect(desk.get_by_text("Add a feature to steer.")).to_be_visible()
    expect_state(desk, "finished")


def test_the_dose_strip_and_controls(shown, shot):
    nb, desk = shown(tokens=8, options=", controls=True")
    expect(desk.get_by_role("group", name="control: sign flipped text").locator(".gl-token").nth(7)).to_be_visible(
        timeout=PATIENCE
    )
    nb.wait_for_kernel("d._latest.wait(30)", seconds=90)
    desk.get_by_role("button", name="sweep").click()
    rows = desk.locator(".gl-dose tbody tr")
    expect(rows).to_have_count(10, timeout=2 * PATIENCE)  # nine strengths, and the text without the edit
    assert desk.locator(".gl-band").count() == 9
    shot(desk, "steering-dose")


@pytest.mark.skipif(ipykernel.version_info[0] < 7, reason="ipykernel 6 has one shell: see test_kernel.py")
def test_a_busy_cell_does_not_hold_up_the_desk(shown):
    nb, desk = shown("import time\ntime.sleep(25)", tokens=6)
    expect_state(desk, "finished")
    nb.wait_for_kernel("d._latest.wait(30)", seconds=90)
    nb.run(2, wait=False)
    nb.page.wait_for_timeout(500)
    took = nb.page.evaluate(FIRST_TOKEN, [desk.element_handle(), "ArrowRight"])
    print(f"slider to the first new token while a cell runs: {took:.0f} ms")
    expect(nb.cell(2).locator(".jp-InputPrompt")).to_have_text("[*]:")


def test_reload_and_second_view_show_the_run_that_goes_on(shown):
    nb, desk = shown("d", tokens=LONG)
    nb.run(2)
    second = nb.cell(2).locator(".gl-desk")
    expect(steered(second).locator(".gl-token").nth(2)).to_be_visible(timeout=PATIENCE)
    nb.save()
    nb.page.wait_for_timeout(500)
    nb.page.reload()
    nb.page.wait_for_selector(".jp-Notebook .jp-Cell")
    nb.wait_until_ready()
    expect(steered(desk).locator(".gl-token").nth(4)).to_be_visible(timeout=PATIENCE)
    expect_state(desk, "running")
    desk.get_by_role("button", name="Stop").click()
    expect_state(desk, "stopped")
    expect_state(second, "stopped")


def test_an_interrupt_ends_a_waiting_cell_and_its_run(shown):
    nb, desk = shown("print('here', flush=True)\nd.wait()", tokens=LONG)
    expect(steered(desk).locator(".gl-token").nth(2)).to_be_visible(timeout=PATIENCE)
    nb.run(2, wait=False)
    # an interrupt before the cell has begun would be lost
    expect(nb.cell(2).locator(".jp-OutputArea-output")).to_have_text("here")
    nb.command("notebook:interrupt-kernel")
    expect_state(desk, "stopped")
    expect(nb.cell(2)).to_contain_text("KeyboardInterrupt")
    assert steered(desk).locator(".gl-token").count() >= 3
    assert "4" in nb.run_in_kernel("print(len(loupe.generate('In the morning', max_new_tokens=4).tokens))")


def test_an_interrupt_of_another_cell_leaves_the_run(shown):
    nb, desk = shown("import time\nprint('here', flush=True)\ntime.sleep(60)", tokens=40)
    expect(steered(desk).locator(".gl-token").nth(2)).to_be_visible(timeout=PATIENCE)
    nb.run(2, wait=False)
    # an interrupt before the cell has begun would be lost
    expect(nb.cell(2).locator(".jp-OutputArea-output")).to_have_text("here")
    nb.command("notebook:interrupt-kernel")
    expect(nb.cell(2)).to_contain_text("KeyboardInterrupt")
    expect_state(desk, "finished")
    nb.wait_for_kernel("len(d.steered.tokens) == 40", seconds=60)


def test_a_dead_kernel_is_not_called_running(shown, shot):
    nb, desk = shown(tokens=LONG)
    expect(steered(desk).locator(".gl-token").nth(2)).to_be_visible(timeout=PATIENCE)
    nb.shut_down()
    expect(status_of(desk)).to_contain_text("no answer from the kernel", timeout=40_000)
    expect(desk.get_by_role("button", name="Run", exact=True)).to_be_disabled()
    assert steered(desk).locator(".gl-token").count() >= 3
    shot(desk, "steering-dead-kernel")


def test_deleting_the_cell_frees_the_worker(shown):
    nb, desk = shown(tokens=LONG)
    expect(steered(desk).locator(".gl-token").nth(2)).to_be_visible(timeout=PATIENCE)
    nb.page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
    nb.command("notebook:delete-cell")
    nb.wait_for_kernel("d._latest.wait(1) and d.current['state'] == 'stopped'", seconds=60)
    # the next request finds the worker free
    assert "8" in nb.run_in_kernel("print(len(loupe.generate('In the morning', max_new_tokens=8).tokens))")
