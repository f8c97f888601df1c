/** The features a search found as rows, in groups if it has some, each with its numbers, its label and a button. */

import type { Hit, Kind } from "../core/hit";
import { percentText, rawText, strengthText } from "../core/numbers";
import { mark, t } from "../core/words";
import { bar } from "./bar";
import { h } from "./dom";
import { chip } from "./text";
import "./search-rows.css";

export interface SearchRowsOptions {
  onSelect(feature: string): void;
  onSteer(feature: string): void;
  onCard(feature: string): void;
  /** Whether there is a kernel that can steer. */
  live: boolean;
  signal: AbortSignal;
}

export interface SearchRows {
  el: HTMLElement;
  show(kind: Kind, hits: Hit[]): void;
  filter(text: string): void;
  select(feature: string | null): void;
  /** The feature `by` rows from the selected one, or undefined at the end. */
  step(by: -1 | 1): string | undefined;
  /** How many rows pass the filter. */
  readonly count: number;
}

type Column = [title: string, hint: string, cell: (hit: Hit) => (Node | string)[]];

const number = (value: number | null, text: (value: number) => string) => (value === null ? "?" : text(value));
const strength = (value: number | null) => strengthText(value ?? Number.NaN);

function measured(hit: Hit): (Node | string)[] {
  return [bar("strength", hit.strength ?? 0), h("span", { class: "gl-number", text: strength(hit.strength) })];
}

function sides(hit: Hit): (Node | string)[] {
  const side = (name: string, [value, raw]: Hit["a"]) =>
    h(
      "span",
      { class: "gl-found-side", attrs: { title: t("{name}: raw {raw}", { name, raw: number(raw, rawText) }) } },
      h("span", { class: "gl-quiet", text: name }),
      bar("strength", value ?? 0),
      h("span", { class: "gl-number", text: raw === 0 ? "–" : strength(value) }),
    );
  return [side("a", hit.a), side("b", hit.b)];
}

const RAW: Column = [mark("raw"), mark("activation as the autoencoder gives it"), (hit) => [number(hit.raw, rawText)]];
const TOKEN: Column = [
  mark("at token"),
  mark("where it is strongest"),
  (hit) => (hit.token === "" ? [] : [chip(hit.token)]),
];
const DENSITY: Column = [
  mark("density"),
  mark("share of all tokens where it is on"),
  (hit) => [number(hit.density, percentText)],
];
const COLUMNS: Record<Kind, Column[]> = {
  words: [],
  text: [[mark("strength"), mark("activation in units of the feature's own maximum"), measured], RAW, TOKEN, DENSITY],
  contrast: [
    [mark("a and b"), mark("largest activation on each side, in units of the feature's own maximum"), sides],
    RAW,
    TOKEN,
  ],
  neighbours: [
    [
      mark("cosine"),
      mark("of the two decoder rows"),
      (hit) => [
        bar("strength", Math.abs(hit.cosine ?? 0)),
        h("span", { class: "gl-number", text: number(hit.cosine, (value) => value.toFixed(2)) }),
      ],
    ],
  ],
};
const GROUPS: Record<string, string> = {
  "only a": mark("Only in a"),
  "only b": mark("Only in b"),
  changed: mark("In both, changed"),
};
const SOURCES: Record<string, string> = {
  user: mark("yours"),
  automatic: mark("automatic"),
  explained: mark("explained by a language model"),
  note: mark("your note"),
  curated: mark("read by hand"),
  examples: mark("tokens of its examples"),
};

export function searchRows({ onSelect, onSteer, onCard, live, signal }: SearchRowsOptions): SearchRows {
  const head = h("div", { class: "gl-found gl-found-head", attrs: { role: "row" } });
  const body = h("div", { class: "gl-found-body" });
  const none = h("div", { class: "gl-quiet gl-none" });
  const el = h(
    "div",
    { class: "gl-found-table", attrs: { role: "grid", "aria-label": t("Features found") } },
    head,
    body,
    none,
  );
  let all: Hit[] = [];
  let shown: Hit[] = [];
  let kind: Kind = "words";
  let words = "";
  let selected: string | null = null;
  let current: string | null = null;

  const lines = () => [...body.querySelectorAll<HTMLElement>(".gl-found")];
  const matches = (hit: Hit) =>
    words === "" || [hit.feature, hit.label, hit.token, hit.source].some((text) => text.toLowerCase().includes(words));
  const labelCell = (hit: Hit) =>
    h(
      "div",
      { class: "gl-found-label", attrs: { role: "gridcell", title: hit.by } },
      h("span", {
        class: hit.source === "automatic" || hit.source === "examples" ? "gl-quiet" : "gl-found-own",
        text: hit.label || t("no label"),
        attrs: { dir: "auto" },
      }),
      ...(hit.source ? [h("span", { class: "gl-found-source", text: sourceText(hit) })] : []),
    );
  const line = (hit: Hit): HTMLElement => {
    const cells = COLUMNS[kind].map(([title, , cell]) =>
      h(
        "div",
        { class: `gl-found-cell gl-found-${title.replaceAll(" ", "-")}`, attrs: { role: "gridcell" } },
        ...cell(hit),
      ),
    );
    const steer = h("button", {
      class: "gl-found-steer",
      text: t("steer"),
      attrs: {
        type: "button",
        tabindex: -1,
        title: t("Steer with it"),
        "aria-label": t("Steer with {feature}", { feature: hit.feature }),
      },
    });
    const card = h("button", {
      class: "gl-found-steer gl-found-card",
      text: t("card"),
      attrs: {
        type: "button",
        tabindex: -1,
        title: t("Open its card"),
        "aria-label": t("Card of {feature}", { feature: hit.feature }),
      },
    });
    steer.hidden = card.hidden = !live;
    const row = h(
      "div",
      { class: "gl-found", attrs: { role: "row", "data-feature": hit.feature, tabindex: -1 } },
      h("div", { class: "gl-found-feature gl-number", text: hit.feature, attrs: { role: "gridcell" } }),
      ...cells,
      labelCell(hit),
      h("div", { class: "gl-found-buttons", attrs: { role: "gridcell" } }, card, steer),
    );
    return row;
  };
  const point = () => {
    if (!shown.some((hit) => hit.feature === current)) current = shown[0]?.feature ?? null;
    for (const row of lines()) {
      row.setAttribute("aria-selected", String(row.dataset.feature === selected));
      row.tabIndex = row.dataset.feature === current ? 0 : -1;
    }
  };
  const hintOf = (title: string) => {
    const hint = COLUMNS[kind].find(([name]) => name === title)?.[1];
    return hint && t(hint);
  };
  const draw = () => {
    el.dataset.kind = kind;
    head.replaceChildren(
      ...[mark("feature"), ...COLUMNS[kind].map(([title]) => title), mark("label"), ""].map((title) =>
        h(
          "div",
          {
            class: `gl-found-${title.replaceAll(" ", "-") || "last"}`,
            attrs: { role: "columnheader", title: hintOf(title) },
          },
          title ? t(title) : h("span", { class: "gl-unseen", text: t("What can be done") }),
        ),
      ),
    );
    shown = all.filter(matches);
    const groups = [...new Set(shown.map((hit) => hit.group))];
    body.replaceChildren(
      ...groups.flatMap((group) => {
        const rows = shown.filter((hit) => hit.group === group).map(line);
        const title = GROUPS[group];
        if (title === undefined) return rows;
        return [
          h("div", { class: "gl-found-group", text: `${t(title)} (${rows.length})`, attrs: { role: "presentation" } }),
          ...rows,
        ];
      }),
    );
    none.textContent = shown.length ? "" : all.length ? t("No feature passes the filter.") : t("No feature was found.");
    none.hidden = shown.length > 0;
    el.setAttribute("aria-rowcount", String(shown.length + 1));
    point();
  };
  const featureOf = (target: EventTarget | null) =>
    target instanceof Element
      ? (target.closest<HTMLElement>(".gl-found[data-feature]")?.dataset.feature ?? null)
      : null;
  const focus = (place: number) => {
    const rows = lines();
    const row = rows[Math.min(Math.max(place, 0), rows.length - 1)];
    if (!row) return;
    current = row.dataset.feature ?? null;
    point();
    row.focus({ preventScroll: true });
    row.scrollIntoView?.({ block: "nearest" });
  };

  body.addEventListener(
    "click",
    (event) => {
      const feature = featureOf(event.target);
      if (feature === null) return;
      current = feature;
      if (event.target instanceof Element && event.target.closest(".gl-found-card")) onCard(feature);
      else if (event.target instanceof Element && event.target.closest(".gl-found-steer")) onSteer(feature);
      else onSelect(feature);
    },
    { signal },
  );
  body.addEventListener(
    "keydown",
    (event) => {
      const feature = featureOf(event.target);
      if (feature === null || (event.target instanceof Element && event.target.closest("button"))) return;
      const here = lines().findIndex((row) => row.dataset.feature === feature);
      const moves: Record<string, number> = {
        ArrowDown: here + 1,
        ArrowUp: here - 1,
        PageDown: here + 10,
        PageUp: here - 10,
        Home: 0,
        End: shown.length - 1,
      };
      if (Object.hasOwn(moves, event.key)) focus(moves[event.key]);
      else if (event.key === "Enter" || event.key === " ") onSelect(feature);
      else if (event.key === "s" && live && !event.ctrlKey && !event.metaKey && !event.altKey) onSteer(feature);
      else if (event.key === "c" && live && !event.ctrlKey && !event.metaKey && !event.altKey) onCard(feature);
      else return;
      event.preventDefault();
      event.stopPropagation();
    },
    { signal },
  );

  return {
    el,
    get count() {
      return shown.length;
    },
    show(given, hits) {
      kind = given;
      all = hits;
      draw();
    },
    filter(text) {
      words = text.trim().toLowerCase();
      draw();
    },
    select(feature) {
      selected = feature;
      if (feature !== null && shown.some((hit) => hit.feature === feature)) current = feature;
      point();
    },
    step(by) {
      const order = lines().map((row) => row.dataset.feature);
      const here = order.indexOf(selected ?? undefined);
      return here < 0 ? order.at(by > 0 ? 0 : -1) : order[here + by];
    },
  };
}

function sourceText(hit: Hit): string {
  const name = t(SOURCES[hit.source] ?? hit.source);
  return hit.score === null ? name : `${name} ${hit.score.toFixed(2)}`;
}
