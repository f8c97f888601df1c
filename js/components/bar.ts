/** A small horizontal bar. */

import { h } from "./dom";

/** `kind` strength is drawn in the palette's colour, probability in a neutral one. `fraction` is of the full length. */
export function bar(kind: "strength" | "probability", fraction: number): HTMLElement {
  const el = h("span", { class: `gl-bar gl-bar-${kind}`, attrs: { "aria-hidden": "true" } });
  const fill = h("span", { class: "gl-bar-fill" });
  fill.style.width = `${(100 * Math.min(Math.max(fraction, 0), 1)).toFixed(1)}%`;
  el.append(fill);
  return el;
}
