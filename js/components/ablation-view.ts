/** What the model loses when a feature is taken out of its examples. */

import type { Ablated, Followed } from "../core/card";
import { visibleText } from "../core/text";
import { t } from "../core/words";
import { h } from "./dom";
import { chip, sentence } from "./text";
import "./ablation-view.css";

export interface AblationView {
  el: HTMLElement;
  show(ablated: Ablated | null, possible: boolean): void;
}

function signed(value: number | null): string {
  if (value === null) return "?";
  const size = Math.abs(value).toFixed(3);
  return Number(size) === 0 ? "±0.000" : `${value > 0 ? "+" : "−"}${size}`;
}

export function ablationView(start: () => void, stop: () => void, live: boolean, signal: AbortSignal): AblationView {
  const button = h("button", { text: t("measure"), attrs: { type: "button" } });
  const status = h("span", { class: "gl-quiet gl-number", attrs: { role: "status" } });
  const words = h("div", { class: "gl-ablation-words" });
  const rows = h("div", { class: "gl-ablation-rows", attrs: { role: "list", "aria-label": t("Examples without it") } });
  const el = h("div", { class: "gl-ablation" }, h("div", { class: "gl-ablation-head" }, button, status), words, rows);
  let running = false;
  button.addEventListener("click", () => (running ? stop() : start()), { signal });
  return {
    el,
    show(ablated, possible) {
      running = ablated?.state === "running";
      button.hidden = !live || !possible;
      button.textContent = running ? t("stop") : ablated ? t("measure again") : t("measure the loss without it");
      const done = ablated?.rows.length ?? 0;
      const all = ablated?.of ?? 0;
      const states = {
        running: t("{done} of {all} examples", { done, all }),
        finished: "",
        stopped: t("stopped after {done} of {all} examples", { done, all }),
        failed: ablated?.error ?? t("failed"),
      };
      status.textContent = ablated ? states[ablated.state] : "";
      status.classList.toggle("gl-ablation-error", ablated?.state === "failed");
      words.hidden = rows.hidden = !done;
      if (!ablated || !done) return;
      words.replaceChildren(
        ...sentence(
          t(
            "The loss on the token after the peak changes by {change} when it is ablated (it rises in {helped} of {done} examples), and by {after} on average over the {tokens} tokens that follow.",
            { helped: ablated.helped, done, after: signed(ablated.after), tokens: ablated.tokens },
          ),
          { change: h("strong", { class: "gl-number", text: t("{number} nats", { number: signed(ablated.next) }) }) },
        ),
      );
      const largest = Math.max(...ablated.rows.map((row) => Math.abs(row.change[0] ?? 0)), 0.05);
      rows.replaceChildren(...ablated.rows.map((row) => line(row, largest)));
    },
  };
}

function line(row: Followed, largest: number): HTMLElement {
  const change = row.change[0] ?? 0;
  const bar = h("span", {
    class: change >= 0 ? "gl-loss gl-loss-up" : "gl-loss gl-loss-down",
    attrs: { "aria-hidden": "true" },
  });
  const fill = h("span", { class: "gl-loss-fill" });
  fill.style.width = `${((50 * Math.abs(change)) / largest).toFixed(1)}%`;
  bar.append(fill);
  const before = row.before.slice(0, -1).join("");
  return h(
    "div",
    { class: "gl-ablation-row", attrs: { role: "listitem" } },
    bar,
    h("span", { class: "gl-number", text: signed(change) }),
    h(
      "span",
      {
        class: "gl-ablation-text",
        attrs: { dir: "auto", title: t("before the peak, the peak, and the token it predicts") },
      },
      h("span", { class: "gl-quiet", text: visibleText(before) }),
      chip(row.before.at(-1) ?? ""),
      h("span", { class: "gl-quiet", text: " → " }),
      chip(row.after[0] ?? ""),
    ),
  );
}
