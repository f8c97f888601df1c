/** The strongest features of a token or a text, as a list to choose from. */

import type { Facts } from "../core/feature";
import { rawText, strengthText } from "../core/numbers";
import type { Active } from "../core/strengths";
import { t, tn } from "../core/words";
import { bar } from "./bar";
import { closestNumber, h } from "./dom";
import { chip } from "./text";
import "./feature-list.css";

export interface FeatureListCallbacks {
  onSelect(feature: number): void;
  /** The features whose facts the list would show. */
  onShown(features: number[]): void;
  facts(feature: number): Facts | undefined;
  signal: AbortSignal;
}

export interface FeatureList {
  el: HTMLElement;
  show(title: (Node | string)[], features: Active[], nothing: string): void;
  select(feature: number | null): void;
  /** Draws again what depends on facts. */
  refresh(): void;
  /** The feature `by` places from the selected one, or undefined at the end. */
  step(by: -1 | 1): number | undefined;
}

const PAGE = 24;
const PROMOTED = 5;

export function featureList({ onSelect, onShown, facts, signal }: FeatureListCallbacks): FeatureList {
  const title = h("div", { class: "gl-list-title" });
  const list = h("div", { class: "gl-list", attrs: { role: "listbox", "aria-label": t("Features") } });
  const more = h("button", { class: "gl-more", attrs: { type: "button" } });
  const el = h("div", { class: "gl-list-box" }, title, list, more);
  let all: Active[] = [];
  let limit = PAGE;
  let selected: number | null = null;
  let rows = new Map<number, { row: HTMLElement; promoted: HTMLElement; filled: boolean }>();

  const fill = () => {
    for (const [feature, entry] of rows) {
      const known = facts(feature);
      if (entry.filled || known === undefined) continue;
      entry.filled = true;
      if (known.label) entry.row.querySelector(".gl-row-name")?.replaceChildren(known.label);
      entry.promoted.replaceChildren(...known.promotes.slice(0, PROMOTED).map(([text]) => chip(text)));
    }
  };
  const mark = () => {
    const chosen = selected !== null && rows.has(selected) ? selected : all[0]?.feature;
    for (const [feature, { row }] of rows) {
      row.setAttribute("aria-selected", String(feature === selected));
      row.tabIndex = feature === chosen ? 0 : -1;
    }
  };
  const draw = () => {
    const shown = all.slice(0, limit);
    rows = new Map();
    for (const active of shown) {
      const promoted = h("span", { class: "gl-promoted" });
      const row = h(
        "div",
        {
          class: "gl-row",
          attrs: {
            role: "option",
            "data-feature": active.feature,
            "aria-label": t("feature {feature}, strength {strength}, raw {raw}", {
              feature: active.feature,
              strength: strengthText(active.strength),
              raw: rawText(active.raw),
            }),
          },
        },
        h("span", { class: "gl-row-index gl-number", text: String(active.feature) }),
        bar("strength", active.shade),
        h("span", { class: "gl-number gl-row-strength", text: strengthText(active.strength) }),
        h("span", {
          class: "gl-number gl-quiet gl-row-raw",
          text: rawText(active.raw),
          attrs: { title: t("raw activation") },
        }),
        h("span", { class: "gl-row-name", attrs: { dir: "auto" } }),
        promoted,
      );
      rows.set(active.feature, { row, promoted, filled: false });
    }
    list.replaceChildren(...[...rows.values()].map(({ row }) => row));
    more.hidden = all.length <= limit;
    more.textContent = tn("{n} weaker one", "{n} weaker ones", all.length - limit);
    mark();
    fill();
    onShown(shown.map((active) => active.feature));
  };

  list.addEventListener(
    "click",
    (event) => {
      const feature = closestNumber(event.target, "feature");
      if (feature !== null) onSelect(feature);
    },
    { signal },
  );
  list.addEventListener(
    "keydown",
    (event) => {
      const feature = closestNumber(event.target, "feature");
      if (feature === null) return;
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (by !== undefined) {
        const next: HTMLElement[] = [...rows.values()].map(({ row }) => row);
        next[next.indexOf(event.target as HTMLElement) + by]?.focus();
      } else if (event.key === "Enter" || event.key === " ") onSelect(feature);
      else return;
      event.preventDefault();
      event.stopPropagation();
    },
    { signal },
  );
  more.addEventListener(
    "click",
    () => {
      limit = all.length;
      draw();
    },
    { signal },
  );

  return {
    el,
    show(heading, features, nothing) {
      title.replaceChildren(...heading);
      all = features;
      limit = Math.max(PAGE, 1 + all.findIndex((active) => active.feature === selected));
      draw();
      if (!features.length) list.replaceChildren(h("div", { class: "gl-quiet gl-none", text: nothing }));
    },
    select(feature) {
      if (feature === selected) return;
      selected = feature;
      if (feature !== null && !rows.has(feature) && all.some((active) => active.feature === feature)) {
        limit = 1 + all.findIndex((active) => active.feature === feature);
        draw();
      } else mark();
      if (feature !== null) rows.get(feature)?.row.scrollIntoView?.({ block: "nearest" });
    },
    refresh: fill,
    step(by) {
      if (selected === null) return all.at(by > 0 ? 0 : -1)?.feature;
      const here = all.findIndex((active) => active.feature === selected);
      return here < 0 ? all[0]?.feature : all[here + by]?.feature;
    },
  };
}
