/** What a search found, with what can be changed about it: the ranking, dense features, a filter. */

import type { PaletteName } from "../core/colour";
import type { Chosen, Hit, Kind } from "../core/hit";
import type { About } from "../core/picture";
import type { Value } from "../core/synced";
import { mark, t, tn } from "../core/words";
import { aboutLine } from "./about";
import { type Banner, banner } from "./banner";
import { type Below, below } from "./below";
import { h } from "./dom";
import { keys } from "./keys";
import { searchRows } from "./search-rows";
import { themed } from "./theme";
import "./root.css";
import "./search-results.css";

export interface Found {
  kind: Kind;
  query: string;
  hits: Hit[];
  relative: boolean;
  dense: boolean;
  hidden: number;
  complete: boolean;
  notes: string[];
  about: About;
}

export interface SearchOptions {
  selection: Value<Chosen>;
  palette: Value<PaletteName>;
  /** Asks for the same search ranked otherwise; what is shown then changes by itself. */
  rank(relative: boolean, dense: boolean): Promise<unknown>;
  steer(feature: string): Promise<unknown>;
  card(feature: string): Promise<unknown>;
  unsteer(): Promise<unknown>;
  onError(subject: string, error: unknown): void;
  live: boolean;
  signal: AbortSignal;
}

export interface SearchView {
  el: HTMLElement;
  banner: Banner;
  /** Where a desk or a card is drawn. */
  below: Below;
  show(found: Found): void;
}

const TITLES: Record<Kind, string> = {
  words: mark("Features with the words"),
  text: mark("Features that fire on"),
  contrast: mark("Features that differ"),
  neighbours: mark("Features nearest to"),
};

export function searchResults(options: SearchOptions): SearchView {
  const { selection, palette, live, onError, signal } = options;
  let found: Found | null = null;

  const messages = banner();
  const title = h("span", { class: "gl-quiet" });
  const query = h("span", { class: "gl-search-query", attrs: { dir: "auto" } });
  const filter = h("input", {
    class: "gl-filter",
    attrs: { type: "search", placeholder: t("filter"), "aria-label": t("Filter the features found") },
  });
  const ranking = h("select", { class: "gl-search-rank", attrs: { "aria-label": t("Ranked by") } });
  ranking.append(
    h("option", { text: t("by strength (own maximum)"), attrs: { value: "relative" } }),
    h("option", { text: t("by raw activation"), attrs: { value: "raw" } }),
  );
  const box = h("input", { attrs: { type: "checkbox" } });
  const boxText = h("span");
  const dense = h("label", { class: "gl-search-dense" }, box, boxText);
  const count = h("span", { class: "gl-quiet gl-number gl-search-count", attrs: { role: "status" } });
  const settle = (subject: string, answer: Promise<unknown>) =>
    answer.then(
      () => onError(subject, null),
      (error) => {
        onError(subject, error);
        if (found) view.show(found);
      },
    );
  const rows = searchRows({
    onSelect: (feature) => selection.set({ feature: feature === selection.get().feature ? null : feature }),
    onSteer: (feature) => settle("steer", options.steer(feature)),
    onCard: (feature) => settle("card", options.card(feature)),
    live,
    signal,
  });
  const under = below(() => settle("steer", options.unsteer()), signal);
  const about = aboutLine(t("j k features · c opens a card · s steers · Esc clears"));
  const root = h(
    "div",
    { class: "gl-root gl-search" },
    h("div", { class: "gl-search-title" }, title, query),
    h("div", { class: "gl-head" }, filter, ranking, dense, count),
    messages.el,
    rows.el,
    about.el,
    under.el,
  );
  const paint = themed(root, signal);

  const drawCount = () => {
    count.textContent = tn("{n} feature", "{n} features", rows.count);
  };
  const rank = () => settle("rank", options.rank(ranking.value === "relative", box.checked));
  ranking.addEventListener("change", rank, { signal });
  box.addEventListener("change", rank, { signal });
  filter.addEventListener(
    "input",
    () => {
      rows.filter(filter.value);
      drawCount();
    },
    { signal },
  );
  selection.subscribe((chosen) => rows.select(chosen.feature), signal);
  palette.subscribe(paint, signal);
  paint(palette.get());
  const go = (by: -1 | 1) => {
    const feature = rows.step(by);
    if (feature !== undefined) selection.set({ feature });
  };
  keys(
    root,
    {
      j: () => go(1),
      k: () => go(-1),
      s: () => {
        const { feature } = selection.get();
        if (live && feature !== null) settle("steer", options.steer(feature));
      },
      c: () => {
        const { feature } = selection.get();
        if (live && feature !== null) settle("card", options.card(feature));
      },
      Escape: () => selection.set({ feature: null }),
    },
    signal,
  );

  const view: SearchView = {
    el: root,
    banner: messages,
    below: under,
    show(given) {
      found = given;
      const ranked = given.kind === "text" || given.kind === "contrast";
      title.textContent = t(TITLES[given.kind]);
      query.textContent = given.query;
      ranking.hidden = dense.hidden = !ranked;
      ranking.disabled = box.disabled = !live;
      ranking.value = given.relative ? "relative" : "raw";
      box.checked = given.dense;
      boxText.textContent =
        given.hidden > 0 ? t("dense features ({n} hidden)", { n: given.hidden }) : t("dense features");
      rows.show(given.kind, given.hits);
      rows.select(selection.get().feature);
      const sampled = t("So many features have these words that a sample from every site was ranked. Add a word.");
      messages.say("sampled", given.complete ? null : sampled, "quiet");
      messages.say("notes", given.notes.length ? given.notes.join(" ") : null, "quiet");
      about.show(given.about);
      drawCount();
    },
  };
  return view;
}
