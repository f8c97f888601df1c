/** Two views beside each other, or below each other where there is no room. */

import { h } from "./dom";
import "./side-by-side.css";

export type Side = "left" | "right";

export interface SideBySide {
  el: HTMLElement;
  left: HTMLElement;
  right: HTMLElement;
}

export function sideBySide(): SideBySide {
  const left = h("div", { class: "gl-half" });
  const right = h("div", { class: "gl-half" });
  return { el: h("div", { class: "gl-halves" }, left, right), left, right };
}
