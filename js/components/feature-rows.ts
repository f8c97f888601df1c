/** Features as a table that sorts, filters, and draws only the rows in sight. */

import type { Facts } from "../core/feature";
import { percentText, rawText, strengthText } from "../core/numbers";
import type { Peak } from "../core/strengths";
import { mark, t } from "../core/words";
import { bar } from "./bar";
import { closestNumber, h } from "./dom";
import { chip } from "./text";
import "./feature-rows.css";

export type Column = "feature" | "strength" | "raw" | "token" | "density";

export interface FeatureRowsCallbacks {
  onSelect(feature: number): void;
  /** The features in sight, or those that a sort or a filter needs to know about. */
  onNeeded(features: number[]): void;
  facts(feature: number): Facts | undefined;
  /** The text of the token at a position, as it is shown. */
  tokenText(position: number): string;
  signal: AbortSignal;
}

export interface FeatureRows {
  el: HTMLElement;
  show(rows: Peak[]): void;
  filter(text: string): void;
  select(feature: number | null): void;
  /** Draws again what depends on facts. */
  refresh(): void;
  /** The feature `by` rows from the selected one, or undefined at the end. */
  step(by: -1 | 1): number | undefined;
  /** How many rows pass the filter. */
  readonly count: number;
}

const ROW = 30;
const SPARE = 6;
const PROMOTED = 6;
const HEADS: [column: Column | null, title: string, hint: string][] = [
  ["feature", mark("feature"), mark("index within the site")],
  ["strength", mark("strength"), mark("activation in units of the feature's own maximum")],
  ["raw", mark("raw"), mark("activation as the autoencoder gives it")],
  ["token", mark("at token"), mark("where it is strongest")],
  ["density", mark("density"), mark("share of all tokens where it is on")],
  [null, mark("promotes"), mark("tokens its direction makes likelier")],
];
/** What a reader wants first: the large, and the early. */
const DOWN_FIRST: Column[] = ["strength", "raw", "density"];

export function featureRows({ onSelect, onNeeded, facts, tokenText, signal }: FeatureRowsCallbacks): FeatureRows {
  const head = h("div", { class: "gl-tr gl-thead", attrs: { role: "row" } });
  const heads = HEADS.map(([column, title, hint]) => {
    const cell = h("div", { class: `gl-th gl-td-${title.replace(" ", "-")}`, attrs: { role: "columnheader" } });
    if (column === null) cell.append(h("span", { text: t(title), attrs: { title: t(hint) } }));
    else cell.append(h("button", { text: t(title), attrs: { type: "button", "data-column": column, title: t(hint) } }));
    return cell;
  });
  head.append(...heads);
  const space = h("div", { class: "gl-tspace", attrs: { role: "rowgroup" } });
  const scroller = h("div", { class: "gl-tscroll" }, space);
  const none = h("div", { class: "gl-quiet gl-none" });
  const el = h(
    "div",
    { class: "gl-table", attrs: { role: "grid", "aria-label": t("Features") } },
    head,
    scroller,
    none,
  );

  let all: Peak[] = [];
  let rows: Peak[] = [];
  let column: Column = "strength";
  let down = true;
  let words = "";
  let selected: number | null = null;
  let current = 0;

  const needsFacts = () => column === "density" || (words !== "" && !/^\d+$/.test(words));
  const matches = (row: Peak): boolean => {
    if (words === "") return true;
    if (String(row.feature).includes(words)) return true;
    if (tokenText(row.token).toLowerCase().includes(words)) return true;
    const known = facts(row.feature);
    return [known?.label ?? "", ...(known?.promotes ?? []).map(([text]) => text)].some((text) =>
      text.toLowerCase().includes(words),
    );
  };
  const worth = (row: Peak): number => {
    if (column === "strength") return row.shade;
    if (column === "density") return facts(row.feature)?.density ?? Number.NaN;
    return row[column];
  };
  const arrange = () => {
    const keep = rows[current]?.feature;
    const keyed = all.filter(matches).map((row) => ({ row, value: worth(row) }));
    keyed.sort((a, b) => {
      // What is not known comes last, whichever way the table is sorted.
      if (Number.isNaN(a.value) || Number.isNaN(b.value))
        return Number(Number.isNaN(a.value)) - Number(Number.isNaN(b.value));
      return (down ? b.value - a.value : a.value - b.value) || a.row.feature - b.row.feature;
    });
    rows = keyed.map(({ row }) => row);
    current = Math.max(
      rows.findIndex((row) => row.feature === keep),
      0,
    );
    heads.forEach((cell, i) => {
      const mine = HEADS[i][0] === column;
      if (HEADS[i][0] !== null) cell.setAttribute("aria-sort", mine ? (down ? "descending" : "ascending") : "none");
    });
    el.setAttribute("aria-rowcount", String(rows.length + 1));
    space.style.height = `${rows.length * ROW}px`;
    none.textContent = rows.length ? "" : all.length ? t("No feature passes the filter.") : t("No feature is on.");
    none.hidden = rows.length > 0;
    draw();
  };
  const draw = () => {
    const height = scroller.clientHeight || ROW * 12;
    const from = Math.max(Math.floor(scroller.scrollTop / ROW) - SPARE, 0);
    const to = Math.min(Math.ceil((scroller.scrollTop + height) / ROW) + SPARE, rows.length);
    const focused = space.contains((el.getRootNode() as Document | ShadowRoot).activeElement);
    space.replaceChildren(...rows.slice(from, to).map((row, i) => drawRow(row, from + i)));
    if (focused) space.querySelector<HTMLElement>('[tabindex="0"]')?.focus({ preventScroll: true });
    const seen = needsFacts() ? all : rows.slice(from, to);
    const unknown = seen.map((row) => row.feature).filter((feature) => facts(feature) === undefined);
    if (unknown.length) onNeeded(unknown);
  };
  const drawRow = (row: Peak, place: number): HTMLElement => {
    const known = facts(row.feature);
    const cells = [
      h("div", { class: "gl-td-feature gl-number", text: String(row.feature) }),
      h(
        "div",
        { class: "gl-td-strength gl-number" },
        bar("strength", row.shade),
        h("span", { text: strengthText(row.strength) }),
      ),
      h("div", { class: "gl-td-raw gl-number gl-quiet", text: rawText(row.raw) }),
      h(
        "div",
        { class: "gl-td-at-token" },
        chip(tokenText(row.token)),
        h("span", { class: "gl-quiet gl-number", text: String(row.token) }),
      ),
      h("div", {
        class: "gl-td-density gl-number gl-quiet",
        text: known === undefined ? "" : known.density === null ? "?" : percentText(known.density),
      }),
      h(
        "div",
        { class: "gl-td-promotes" },
        ...(known?.label ? [h("b", { text: known.label, attrs: { dir: "auto" } })] : []),
        ...(known?.promotes ?? []).slice(0, PROMOTED).map(([text]) => chip(text)),
      ),
    ];
    for (const cell of cells) cell.setAttribute("role", "gridcell");
    const line = h(
      "div",
      {
        class: "gl-tr",
        attrs: {
          role: "row",
          "data-feature": row.feature,
          "aria-rowindex": place + 2,
          "aria-selected": String(row.feature === selected),
          tabindex: place === current ? 0 : -1,
        },
      },
      ...cells,
    );
    line.style.top = `${place * ROW}px`;
    return line;
  };
  const reveal = (place: number) => {
    const height = scroller.clientHeight || ROW * 12;
    if (place * ROW < scroller.scrollTop) scroller.scrollTop = place * ROW;
    else if ((place + 1) * ROW > scroller.scrollTop + height) scroller.scrollTop = (place + 1) * ROW - height;
  };
  const focusRow = (place: number) => {
    if (!rows.length) return;
    current = Math.min(Math.max(place, 0), rows.length - 1);
    reveal(current);
    draw();
    space.querySelector<HTMLElement>('[tabindex="0"]')?.focus({ preventScroll: true });
  };

  scroller.addEventListener("scroll", draw, { passive: true, signal });
  head.addEventListener(
    "click",
    (event) => {
      const name = event.target instanceof Element ? event.target.getAttribute("data-column") : null;
      if (!name) return;
      down = name === column ? !down : DOWN_FIRST.includes(name as Column);
      column = name as Column;
      scroller.scrollTop = 0;
      current = 0;
      arrange();
    },
    { signal },
  );
  space.addEventListener(
    "click",
    (event) => {
      const feature = closestNumber(event.target, "feature");
      if (feature === null) return;
      current = rows.findIndex((row) => row.feature === feature);
      onSelect(feature);
    },
    { signal },
  );
  space.addEventListener(
    "keydown",
    (event) => {
      const moves: Record<string, number> = {
        ArrowDown: current + 1,
        ArrowUp: current - 1,
        PageDown: current + 10,
        PageUp: current - 10,
        Home: 0,
        End: rows.length - 1,
      };
      if (Object.hasOwn(moves, event.key)) focusRow(moves[event.key]);
      else if ((event.key === "Enter" || event.key === " ") && rows[current]) onSelect(rows[current].feature);
      else return;
      event.preventDefault();
      event.stopPropagation();
    },
    { signal },
  );

  return {
    el,
    get count() {
      return rows.length;
    },
    show(given) {
      all = given;
      scroller.scrollTop = 0;
      arrange();
    },
    filter(text) {
      words = text.trim().toLowerCase();
      scroller.scrollTop = 0;
      arrange();
    },
    select(feature) {
      if (feature === selected) return;
      selected = feature;
      const place = rows.findIndex((row) => row.feature === feature);
      if (place >= 0) {
        current = place;
        reveal(place);
      }
      draw();
    },
    refresh() {
      if (needsFacts()) arrange();
      else draw();
    },
    step(by) {
      const here = rows.findIndex((row) => row.feature === selected);
      if (here < 0) return rows.at(by > 0 ? 0 : -1)?.feature;
      return rows[here + by]?.feature;
    },
  };
}
