/** What steering did to the other features: those that moved most, layer by layer. */

import type { Movers } from "../core/desk";
import { rawText, strengthText } from "../core/numbers";
import { t } from "../core/words";
import { h } from "./dom";
import { chip } from "./text";
import "./movers.css";

const MOST = 5;

export function moversView(onFeature: (feature: string) => void, signal: AbortSignal) {
  const el = h("div", { class: "gl-movers" });
  el.addEventListener(
    "click",
    (event) => {
      const button = event.target instanceof Element ? event.target.closest("button") : null;
      if (button?.dataset.feature) onFeature(button.dataset.feature);
    },
    { signal },
  );
  return {
    el,
    show(movers: Movers[]): void {
      el.replaceChildren(
        ...movers.map(({ layer, features }) =>
          h(
            "div",
            { class: "gl-mover-site" },
            h("div", { class: "gl-list-title", text: t("layer {n}", { n: layer }) }),
            ...features.slice(0, MOST).map(({ feature, label, promotes, from, to, raw }) => {
              const rawChange = `${rawText(raw[0])} → ${rawText(raw[1])}`;
              const change = from === null || to === null ? rawChange : `${strengthText(from)} → ${strengthText(to)}`;
              return h(
                "button",
                {
                  class: "gl-mover",
                  attrs: {
                    type: "button",
                    "data-feature": feature,
                    title: t("Mean raw activation {change}. Colour the texts by {feature}", {
                      change: rawChange,
                      feature,
                    }),
                  },
                },
                h("span", { class: "gl-number", text: feature }),
                h("span", { class: raw[1] > raw[0] ? "gl-up gl-number" : "gl-down gl-number", text: change }),
                h(
                  "span",
                  { class: "gl-mover-words" },
                  ...(label ? [h("b", { text: label, attrs: { dir: "auto" } })] : []),
                  ...promotes.slice(0, 3).map((text) => chip(text)),
                ),
              );
            }),
          ),
        ),
      );
    },
  };
}
