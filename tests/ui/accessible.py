"""What axe-core finds in a part of a page, what sticks out of it, where Tab leads, and what is not Chinese."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import Locator

AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
# The rules of WCAG 2.2 AA, and what axe calls best practice within a part of a page.
_RUN = """async (el) => {
  const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
  const wholePage = ["region", "landmark-one-main", "page-has-heading-one", "heading-order", "skip-link", "bypass"];
  const rules = Object.fromEntries(wholePage.map((id) => [id, { enabled: false }]));
  const { violations } = await axe.run(el, { runOnly: { type: "tag", values: tags }, rules });
  return violations.flatMap(({ id, nodes }) =>
    nodes.map(({ html, failureSummary }) => `${id}: ${html.slice(0, 160)} ${failureSummary.slice(0, 400)}`));
}"""
# What is cut off or lies beside the part, unless it can be scrolled to.
_OUTSIDE = """(el) => {
  const { left, right } = el.getBoundingClientRect();
  const scrolls = (one) => {
    for (let up = one.parentElement; up && up !== el.parentElement; up = up.parentElement)
      if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(up).overflowX)) return true;
    return false;
  };
  return [...el.querySelectorAll("button, input, select, textarea, a, [role=option], [tabindex]")]
    .filter((one) => one.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && !scrolls(one))
    .map((one) => [one, one.getBoundingClientRect()])
    .filter(([, box]) => box.width > 0 && (box.right > right + 1 || box.left < left - 1))
    .map(([one, box]) => `${one.outerHTML.slice(0, 120)}: ${Math.round(box.left)} to ${Math.round(box.right)}`
      + ` in ${Math.round(left)} to ${Math.round(right)}`);
}"""
_FOCUSED = """(el) => {
  let at = document.activeElement;
  while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
  if (!at || !el.contains(at)) return null;
  const style = getComputedStyle(at);
  const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
  const stroke = at instanceof SVGElement && style.stroke !== "none" && parseFloat(style.strokeWidth) > 1;
  // A list whose focus is a descendant's shows it there.
  const inside = at.getAttribute("aria-activedescendant");
  const led = inside !== null && getComputedStyle(at.ownerDocument.getElementById(inside)).boxShadow !== "none";
  return { what: at.outerHTML.slice(0, 140), seen: ring || stroke || led || style.boxShadow !== "none" };
}"""
# Two English words in a row, in what is seen or read aloud; not in what models and users wrote.
_ENGLISH = """(el) => {
  const theirs = "[dir=auto], .gl-chip, .gl-token, .gl-scrub-token, .gl-about > span:first-child, code, textarea,"
    + " .gl-river-names, .gl-guess-at, .gl-block, [data-token], .gl-passage, datalist, option[value$='.ipynb']";
  const names = new RegExp("SAEs?|Neuronpedia|Gemloupe|Gemma Scope|JupyterLab|Python|HTML|PNG|SVG"
    + "|Ctrl|Enter|Shift|Home|End|Esc|Tab", "g");
  const english = (text) => /[A-Za-z]{2,}[,.:;]? [A-Za-z]{2,}/.test(text.replace(names, "·"));
  const found = [];
  const walk = document.createTreeWalker(el, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const at = node instanceof Element ? node : node.parentElement;
    if (!at || at.closest(theirs)) continue;
    if (node instanceof Text) { if (english(node.data)) found.push(node.data); continue; }
    for (const name of ["title", "aria-label", "placeholder", "aria-valuetext"])
      if (english(node.getAttribute(name) ?? "")) found.push(`${name}: ${node.getAttribute(name)}`);
  }
  return [...new Set(found)];
}"""


def faults(part: Locator) -> list[str]:
    """Each element that breaks a rule, with how to mend it."""
    page = part.page
    if not page.evaluate("'axe' in globalThis"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    part.scroll_into_view_if_needed()
    return part.evaluate(_RUN)


def outside(part: Locator) -> list[str]:
    """Each control that is not within the part's width."""
    return part.evaluate(_OUTSIDE)


def english(part: Locator, *, given: str = "\0") -> list[str]:
    """Sentences and names that are still English, but for what the user has `given`."""
    return [text for text in part.evaluate(_ENGLISH) if given not in text]


def focus_path(part: Locator, most: int = 200) -> list[dict[str, Any]]:
    """Every element that Tab reaches in a part, in order, and whether its focus is seen."""
    part.scroll_into_view_if_needed()
    part.evaluate("(el) => { el.tabIndex = -1; el.focus(); el.removeAttribute('tabindex'); }")
    found: list[dict[str, Any]] = []
    for _ in range(most):
        part.page.keyboard.press("Tab")
        one = part.evaluate(_FOCUSED)
        if one is None:
            break
        found.append(one)
    return found


def unseen(part: Locator) -> list[str]:
    """Each element that Tab reaches without one seeing it; a part must have one that it reaches."""
    path = focus_path(part)
    return [one["what"] for one in path if not one["seen"]] if path else ["Tab reaches nothing"]
