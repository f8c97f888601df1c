/** What steering changed, word by word. */

import { visibleText } from "../core/text";
import { wordDiff } from "../core/word-diff";
import { t } from "../core/words";
import { h } from "./dom";
import "./word-diff.css";

export function wordDiffView(): { el: HTMLElement; show(before: string, after: string): void } {
  const el = h("div", { class: "gl-diff", attrs: { dir: "auto" } });
  let shown = "";
  return {
    el,
    show(before, after) {
      const state = JSON.stringify([before, after]);
      if (state === shown) return;
      shown = state;
      if (before === after)
        el.replaceChildren(h("span", { class: "gl-quiet", text: t("The two texts are the same.") }));
      else
        el.replaceChildren(
          ...wordDiff(before, after).map(({ kind, text }) => {
            // What reorders or hides text must not do so here; line ends are drawn as such.
            const seen = text
              .split(/(\s+)/u)
              .map((part) => (/^[ \n]*$/.test(part) ? part : visibleText(part)))
              .join("");
            if (kind === "gone") return h("del", { text: seen });
            return h(kind === "new" ? "ins" : "span", { text: seen });
          }),
        );
    },
  };
}
