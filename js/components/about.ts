/** The quiet line under a picture: what made it. */

import type { About } from "../core/picture";
import { h } from "./dom";

export function aboutLine(help: string): { el: HTMLElement; show(about: About): void } {
  const text = h("span");
  return {
    el: h("div", { class: "gl-about" }, text, h("span", { class: "gl-help", text: help })),
    show(about) {
      const place = [about.device, about.dtype].filter(Boolean).join(", ");
      text.textContent = [about.model, about.scope, place, about.note].filter(Boolean).join(" · ");
    },
  };
}
