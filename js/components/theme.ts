/** Light or dark, told by the colour of the text the host gives us: that works in every host and shadow root. */

import { PALETTES, type PaletteName } from "../core/colour";
import { atEnd } from "./dom";

export type Theme = "light" | "dark";

function inkTheme(el: HTMLElement): Theme {
  const parts = /rgba?\(\s*([\d.]+)[,\s]+([\d.]+)[,\s]+([\d.]+)/.exec(getComputedStyle(el).color);
  if (!parts) return "light";
  const [red, green, blue] = parts.slice(1).map(Number);
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "dark" : "light";
}

/** Keeps `data-gl-theme` and the palette's colour of a root up to date. Returns the setter of the palette. */
export function themed(root: HTMLElement, signal: AbortSignal): (palette: PaletteName) => void {
  let palette: PaletteName = "blue";
  const apply = () => {
    const theme = inkTheme(root);
    root.dataset.glTheme = theme;
    root.style.setProperty("--gl-hue", PALETTES[palette][theme].join(" "));
  };
  const observer = new MutationObserver(() => {
    apply();
    // The host may swap its style sheets a moment after its attributes.
    setTimeout(() => !signal.aborted && apply(), 250);
  });
  for (const node of [document.documentElement, document.body])
    observer.observe(node, {
      attributes: true,
      attributeFilter: ["class", "style", "data-theme", "data-jp-theme-name"],
    });
  atEnd(signal, () => observer.disconnect());
  globalThis.matchMedia?.("(prefers-color-scheme: dark)").addEventListener?.("change", apply, { signal });
  // The colour is only known once the host has put the root into the page.
  requestAnimationFrame(() => !signal.aborted && apply());
  apply();
  return (name) => {
    palette = name;
    apply();
  };
}
