/** A place under a view for another one, a desk or a card, with a button that closes it. */

import { t } from "../core/words";
import { h, on } from "./dom";
import "./below.css";

export interface Below {
  el: HTMLElement;
  /** Where the other one is drawn. */
  place: HTMLElement;
  opened(open: boolean): void;
}

export function below(onClose: () => void, signal: AbortSignal): Below {
  const close = h("button", {
    text: t("close ×"),
    attrs: { type: "button", "aria-label": t("Close what is open below") },
  });
  const place = h("div");
  const el = h("div", { class: "gl-below" }, h("div", { class: "gl-below-head" }, close), place);
  el.hidden = true;
  on(close, "click", onClose, signal);
  return {
    el,
    place,
    opened(open) {
      el.hidden = !open;
    },
  };
}
