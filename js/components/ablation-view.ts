/** What the model loses when a feature is taken out of its examples. */

import type { Ablated, Followed } from "../core/card";
import { visibleText } from "../core/text";
import { h } from "./dom";
import { chip } from "./text";
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
  const button = h("button", { text: "measure", attrs: { type: "button" } });
  const status = h("span", { class: "gl-quiet gl-number", attrs: { role: "status" } });
  const words = h("div", { class: "gl-ablation-words" });
  const rows = h("div", { class: "gl-ablation-rows", attrs: { role: "list", "aria-label": "Examples without it" } });
  const el = h("div", { class: "gl-ablation" }, h("div", { class: "gl-ablation-head" }, button, status), words, rows);
  let running = false;
  button.addEventListener("click", () => (running ? stop() : start()), { signal });
  return {
    el,
    show(ablated, possible) {
      running = ablated?.state === "running";
      button.hidden = !live || !possible;
      button.textContent = running ? "stop" : ablated ? "measure again" : "measure the loss without it";
      const done = ablated?.rows.length ?? 0;
      const states = {
        running: `${done} of ${ablated?.of} examples`,
        finished: "",
        stopped: `stopped after ${done} of ${ablated?.of} examples`,
        failed: ablated?.error ?? "failed",
      };
      status.textContent = ablated ? states[ablated.state] : "";
      status.classList.toggle("gl-ablation-error", ablated?.state === "failed");
      words.hidden = rows.hidden = !done;
      if (!ablated || !done) return;
      words.replaceChildren(
        "The loss on the token after the peak changes by ",
        h("strong", { class: "gl-number", text: `${signed(ablated.next)} nats` }),
        ` when it is ablated (it rises in ${ablated.helped} of ${done} examples), and by ${signed(ablated.after)} on average over the ${ablated.tokens} tokens that follow.`,
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
        attrs: { dir: "auto", title: "before the peak, the peak, and the token it predicts" },
      },
      h("span", { class: "gl-quiet", text: visibleText(before) }),
      chip(row.before.at(-1) ?? ""),
      h("span", { class: "gl-quiet", text: " → " }),
      chip(row.after[0] ?? ""),
    ),
  );
}
