/** A small card beside an element. It never takes the pointer, and nothing clips it. */

import { h } from "./dom";
import "./tooltip.css";

export interface Tooltip {
  el: HTMLElement;
  show(anchor: HTMLElement, content: Node): void;
  hide(): void;
}

const MARGIN = 8;

export function tooltip(): Tooltip {
  // The top layer: output areas clip what leaves them, and Lumino's `contain` captures `position: fixed`.
  const el = h("div", { class: "gl-tooltip", attrs: { popover: "manual", role: "tooltip" } });
  let shown = false;
  return {
    el,
    show(anchor, content) {
      el.replaceChildren(content);
      if (!shown) {
        el.classList.add("gl-open");
        if (el.isConnected) el.showPopover?.();
        shown = true;
      }
      place(el, anchor);
    },
    hide() {
      if (!shown) return;
      shown = false;
      el.classList.remove("gl-open");
      if (el.isConnected) el.hidePopover?.();
    },
  };
}

/** Below the anchor's first line, above it where there is no room, always inside the window. */
function place(el: HTMLElement, anchor: HTMLElement): void {
  const [box] = anchor.getClientRects();
  if (!box) return;
  const { clientWidth, clientHeight } = document.documentElement;
  const width = el.offsetWidth;
  const height = el.offsetHeight;
  const left = Math.min(Math.max(box.left, MARGIN), Math.max(clientWidth - width - MARGIN, MARGIN));
  const below = box.bottom + MARGIN;
  const top =
    below + height + MARGIN > clientHeight && box.top - height - MARGIN > 0 ? box.top - height - MARGIN : below;
  el.style.left = `${left}px`;
  el.style.top = `${top}px`;
}
