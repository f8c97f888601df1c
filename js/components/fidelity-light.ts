/** The corner light: does this SAE fit this text? A word beside the colour, and the reason on request. */

import type { Fidelity, Light } from "../core/fidelity";
import { mark, t } from "../core/words";
import { freshId, h } from "./dom";
import "./fidelity-light.css";

export interface FidelityLight {
  el: HTMLElement;
  /** `null`: not measured; "waiting": being measured; "hidden": there is no SAE to judge. */
  show(given: Fidelity | null | "waiting" | "hidden"): void;
}

const WORDS: Record<Light, string> = {
  green: mark("SAE fits"),
  amber: mark("SAE fits poorly"),
  red: mark("SAE does not fit"),
  unknown: mark("fit unknown"),
};

export function fidelityLight(signal: AbortSignal): FidelityLight {
  const id = freshId("fidelity");
  const words = h("span", { class: "gl-light-words" });
  const dot = h("span", { class: "gl-light-dot", attrs: { "aria-hidden": "true" } });
  const button = h(
    "button",
    { class: "gl-light", attrs: { type: "button", "aria-expanded": "false", "aria-controls": id } },
    dot,
    words,
  );
  const reason = h("div", { class: "gl-light-reason", attrs: { id } });
  reason.hidden = true;
  const open = (yes: boolean) => {
    reason.hidden = !yes;
    button.setAttribute("aria-expanded", String(yes));
  };
  button.addEventListener("click", () => open(reason.hidden === true), { signal });
  button.addEventListener(
    "keydown",
    (event) => {
      // The view has keys of its own, and Escape there clears the selection.
      if (event.key === "Enter" || event.key === " ") event.stopPropagation();
      if (event.key === "Escape" && !reason.hidden) {
        event.stopPropagation();
        open(false);
      }
    },
    { signal },
  );
  const el = h("div", { class: "gl-light-box" }, button, reason);
  return {
    el,
    show(given) {
      el.hidden = given === "hidden";
      const known = typeof given === "object" && given !== null;
      button.dataset.light = known ? given.light : "none";
      if (known) {
        words.textContent = t(WORDS[given.light]);
        reason.textContent = t("{site}: {reason}.", { site: given.site, reason: given.reason });
      } else {
        words.textContent = given === "waiting" ? t("measuring the fit…") : t("fit not measured");
        reason.textContent =
          given === "waiting"
            ? t("The kernel compares the tensor with what the SAE makes of it.")
            : t("Whether the SAE fits this text was not measured; it needs a kernel with the loupe open.");
      }
      button.title = reason.textContent;
      // Bad news is not hidden behind a click.
      if (known && given.light === "red") open(true);
      else if (!button.matches(":focus")) open(false);
    },
  };
}
