/** What the colours mean, and the choice of palette. */

import { opacity, PALETTE_NAMES, PALETTES, type PaletteName } from "../core/colour";
import { mark, t } from "../core/words";
import { h } from "./dom";
import "./legend.css";

export interface Legend {
  el: HTMLElement;
  show(text: string, ends: [low: string, high: string] | null): void;
  setPalette(name: PaletteName): void;
}

const NAMES: Record<PaletteName, string> = {
  blue: mark("blue"),
  orange: mark("orange"),
  purple: mark("purple"),
  grey: mark("grey"),
};
const STEPS = [0.02, 0.1, 0.25, 0.5, 1];

export function legend(onPalette: (name: PaletteName) => void, signal: AbortSignal): Legend {
  const words = h("span", { class: "gl-legend-text" });
  const low = h("span", { class: "gl-number" });
  const high = h("span", { class: "gl-number" });
  const ramp = h("span", { class: "gl-ramp", attrs: { "aria-hidden": "true" } }, low);
  for (const step of STEPS) {
    const cell = h("span", { class: "gl-ramp-cell" });
    cell.style.setProperty("--gl-shade", opacity(step).toFixed(3));
    ramp.append(cell);
  }
  ramp.append(high);
  const choice = h("span", { class: "gl-palettes", attrs: { role: "radiogroup", "aria-label": t("Palette") } });
  const buttons = PALETTE_NAMES.map((name) => {
    const button = h("button", {
      class: "gl-swatch",
      attrs: {
        type: "button",
        role: "radio",
        "aria-label": t(NAMES[name]),
        title: t(NAMES[name]),
        "data-palette": name,
      },
    });
    button.style.setProperty("--gl-swatch", `rgb(${PALETTES[name].light.join(" ")})`);
    return button;
  });
  choice.append(...buttons);
  choice.addEventListener(
    "click",
    (event) => {
      const name = event.target instanceof Element ? event.target.getAttribute("data-palette") : null;
      if (name) onPalette(name as PaletteName);
    },
    { signal },
  );
  choice.addEventListener(
    "keydown",
    (event) => {
      const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      const here = buttons.findIndex((button) => button.getAttribute("aria-checked") === "true");
      const there = (here + by + buttons.length) % buttons.length;
      onPalette(PALETTE_NAMES[there]);
      buttons[there].focus();
    },
    { signal },
  );
  return {
    el: h("div", { class: "gl-legend" }, words, ramp, choice),
    show(text, ends) {
      words.textContent = text;
      ramp.hidden = ends === null;
      if (ends) [low.textContent, high.textContent] = ends;
    },
    setPalette(name) {
      for (const button of buttons) {
        const chosen = button.getAttribute("data-palette") === name;
        button.setAttribute("aria-checked", String(chosen));
        button.tabIndex = chosen ? 0 : -1;
      }
    },
  };
}
