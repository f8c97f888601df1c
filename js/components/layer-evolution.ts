/** A text from layer to layer: a line of tokens to scrub over, the layers of one of them, or layers by tokens. */

import { type Attribution, edgesAt, effectsByToken } from "../core/attribution";
import { PALETTES, type PaletteName, type Rgb } from "../core/colour";
import { BANDS, type Block, type Column, type Evolution, type Ribbon, type WireGuesses } from "../core/evolution";
import { type Facts, parseFeature, type Selection } from "../core/feature";
import { percentText, rawText, strengthText } from "../core/numbers";
import type { About } from "../core/picture";
import type { Value } from "../core/synced";
import { tokenName, visibleText } from "../core/text";
import type { Token } from "../core/token";
import { mark, t } from "../core/words";
import { aboutLine } from "./about";
import { type Banner, banner } from "./banner";
import { type Below, below as belowView } from "./below";
import { atEnd, h, on, onResize } from "./dom";
import { keys } from "./keys";
import { type GridRow, layerGrid } from "./layer-grid";
import { layerPlot, spokenBlock } from "./layer-plot";
import { layerStrip } from "./layer-strip";
import { saveButtons, standalone } from "./save-picture";
import { chip } from "./text";
import { themed } from "./theme";
import { guessRows } from "./token-card";
import { tokenScrubber } from "./token-scrubber";
import { tooltip } from "./tooltip";
import "./root.css";
import "./layer-evolution.css";

export type ViewName = "layers" | "grid";
export type Names = Record<string, [text: string, given: boolean]>;

export interface Shown {
  tokens: Token[];
  evolution: Evolution;
  about: About;
}

export interface EvolutionOptions {
  selection: Value<Selection>;
  view: Value<ViewName>;
  names: Value<Names>;
  attribution: Value<Attribution | null>;
  palette: Value<PaletteName>;
  /** Whether guesses at some tokens are still to come. */
  guessing(): boolean;
  /** Facts of a feature, if they are there; `want` resolves when they are. */
  facts: {
    get(site: string, feature: number): Facts | undefined;
    want(site: string, features: number[], signal: AbortSignal): Promise<void>;
  };
  attribute(target: string | number | null, position: number): Promise<unknown>;
  /** Takes the n strongest sources out, or the one of `edge`. */
  check(n: number, edge?: { feature: string; position: number }): Promise<unknown>;
  /** A feature with its matches in all layers, and where each is on. */
  concept(feature: string): Promise<{ features: string[]; rows: [position: number, value: number][][] }>;
  openCard(feature: string): Promise<unknown>;
  closeCard(): Promise<unknown>;
  onError(subject: string, error: unknown): void;
  live: boolean;
  signal: AbortSignal;
}

export interface EvolutionView {
  el: HTMLElement;
  banner: Banner;
  /** Where a card is drawn. */
  below: Below;
  show(shown: Shown): void;
  /** Guesses that come after the rest. */
  learn(guesses: WireGuesses): void;
}

/** Milliseconds without a move after which the kernel is told where one is. */
const REST = 300;
const MEASURES: [name: string, text: string][] = [
  ["concept", mark("the followed feature")],
  ["l0", mark("L0: features on")],
  ["norm", mark("norm")],
  ["fvu", mark("FVU: what the SAE misses")],
  ["entropy", mark("entropy of the guess, nats")],
];

export function layerEvolution(options: EvolutionOptions): EvolutionView {
  const { selection, view, names, attribution, palette, onError, live, signal } = options;
  let shown: Shown | null = null;
  let token = selection.get().token ?? 0;
  let column: Column | null = null;
  let open: Set<string> = new Set();
  let kept = true;
  let hues: Record<string, Rgb> = {};
  /** Pixels across; measured when the size changes, since asking costs a layout. */
  let room = 0;
  let resting: ReturnType<typeof setTimeout> | undefined;
  let exact: { asked: string; features: string[]; rows: Map<string, Float32Array> } | null = null;

  const messages = banner();
  const card = tooltip();
  const scrubber = tokenScrubber({ onScrub: go, onRest: rest, signal });
  const plot = layerPlot({
    onHover: (what) => {
      if (what === null) card.hide();
      else if ("block" in what) hoverBlock(what.block, what.anchor);
      else card.show(what.anchor as HTMLElement, ribbonCard(what.ribbon));
    },
    onSelect: (block) => follow(block.name === followed() ? null : block.name),
    onOpen: (block) => {
      // The two clicks before it chose and let go.
      follow(block.name);
      openCard(block.name);
    },
    signal,
  });
  const strip = layerStrip((layer, anchor) => {
    if (layer !== null && anchor && shown) card.show(anchor as HTMLElement, layerCard(shown.evolution, layer));
    else card.hide();
  }, signal);
  const grid = layerGrid((picked) => {
    go(picked);
    rest();
  }, signal);

  const button = (text: string, more: Record<string, string> = {}) =>
    h("button", { text, attrs: { type: "button", ...more } });
  const tabs = (["layers", "grid"] as const).map((name) => {
    const one = button(name === "layers" ? t("layers") : t("grid"), { role: "radio" });
    on(one, "click", () => view.set(name), signal);
    return [name, one] as const;
  });
  const views = h(
    "span",
    { class: "gl-switch", attrs: { role: "radiogroup", "aria-label": t("View") } },
    ...tabs.map(([, one]) => one),
  );
  const bands = h("span", { class: "gl-switch gl-bands", attrs: { role: "group", "aria-label": t("Bands") } });
  const measure = h("select", { attrs: { "aria-label": t("Measure") } });
  measure.append(...MEASURES.map(([name, text]) => h("option", { text: t(text), attrs: { value: name } })));
  const kindChoice = h("select", { attrs: { "aria-label": t("Kind of site") } });
  const target = h("select", { class: "gl-target", attrs: { "aria-label": t("Keep only what leads to") } });
  const clear = h("button", { class: "gl-clear", attrs: { type: "button", title: t("Follow no feature (Escape)") } });
  const saves = saveButtons(take, (error) => onError("save", error), signal);
  const special = h("div", { class: "gl-quiet gl-plot-note" });
  const scroller = h("div", { class: "gl-plot-scroll", attrs: { tabindex: -1 } });
  scroller.append(plot.el, strip.el);
  const layersBox = h("div", {}, special, scroller);
  const gridBox = h("div", {}, grid.el);
  const about = aboutLine(t("← → tokens · Tab then arrows: features · Enter follows · c card · Esc clears"));
  const side = h("div", { class: "gl-inspect" });
  const leads = h("div", { class: "gl-leads" });
  const below = belowView(() => options.closeCard().catch((error) => onError("card", error)), signal);
  const said = h("div", { class: "gl-unseen", attrs: { role: "status", "aria-live": "polite" } });
  const root = h(
    "div",
    { class: "gl-root gl-layers" },
    h("div", { class: "gl-head" }, views, bands, measure, kindChoice, target, clear, saves),
    messages.el,
    scrubber.el,
    layersBox,
    gridBox,
    leads,
    side,
    about.el,
    below.el,
    said,
    card.el,
  );
  const paint = themed(root, signal);

  // ---- what is chosen

  function followed(): string | null {
    const { feature } = selection.get();
    return feature !== null && shown && shown.evolution.siteAt(feature.split("/")[0]) >= 0 ? feature : null;
  }
  function follow(feature: string | null): void {
    clearTimeout(resting);
    selection.set({ token, feature });
  }
  /** Shows another token at once; the kernel hears of it when one has come to rest. */
  function go(next: number): void {
    if (!shown || next === token || next < 0 || next >= shown.tokens.length) return;
    token = next;
    card.hide();
    draw();
    drawTargets();
    clearTimeout(resting);
    resting = setTimeout(rest, REST);
  }
  function rest(): void {
    clearTimeout(resting);
    if (!signal.aborted && selection.get().token !== token) selection.set({ ...selection.get(), token });
    tell();
  }
  atEnd(signal, () => clearTimeout(resting));

  const nameOf = (feature: string): string => {
    const [text] = names.get()[feature] ?? [""];
    return text.split(" · ")[0];
  };
  /** The browser knows what joins the features it shows; the kernel knows the matches of all. */
  const trailOf = (feature: string): string[] =>
    exact?.features.includes(feature) ? exact.features : (shown?.evolution.trail(feature) ?? []);
  const found = (): Attribution | null => (kept ? attribution.get() : null);

  // ---- drawing

  function measureRoom(): void {
    const style = getComputedStyle(root);
    room =
      root.clientWidth - (Number.parseFloat(style.paddingLeft) || 0) - (Number.parseFloat(style.paddingRight) || 0);
  }

  function draw(): void {
    if (!shown) return;
    const { evolution, tokens } = shown;
    token = Math.min(token, Math.max(tokens.length - 1, 0));
    const led = found();
    const edges = led ? edgesAt(led, token) : null;
    const more = [...(edges?.values() ?? [])].flatMap(
      (edge) => evolution.made(edge.feature, edge.raw, edge.strength ?? Number.NaN) ?? [],
    );
    column = evolution.column(token, tokens[token]?.special ? [] : more);
    scrubber.select(token);
    if (view.get() === "layers") drawLayers(shown, column, edges);
    else drawGrid(shown);
    drawSide();
  }
  function drawLayers({ evolution, tokens }: Shown, at: Column, edges: ReturnType<typeof edgesAt> | null): void {
    const kinds = evolution.kinds.filter((kind) => open.has(kind));
    const feature = followed();
    const trail = feature === null ? [] : trailOf(feature);
    // Where nothing of it is on there is nothing to stand out.
    const on = trail.some((one) => at.chainOf.has(one));
    plot.show({
      evolution,
      column: at,
      kinds,
      followed: on ? new Set(trail) : null,
      selected: feature,
      edges,
      target: found()?.target.feature ?? null,
      name: nameOf,
      given: (one) => names.get()[one]?.[1] === true,
      label: (block) => spokenBlock(block, at, nameOf(block.name)),
      width: (room > 0 ? room : 960) - 2,
    });
    if (plot.frame) strip.show({ evolution, token, kinds, frame: plot.frame, target: found()?.target.token ?? null });
    special.textContent = noteOn(evolution, tokens[token], edges);
    special.hidden = special.textContent === "";
  }
  function noteOn(evolution: Evolution, at: Token | undefined, edges: ReturnType<typeof edgesAt> | null): string {
    if (at?.special) return t("A special token: the SAEs were not trained on it, so its features are not shown.");
    if (!evolution.holds(token))
      return t("The features of this token are not in this saved picture; save_html keeps all.");
    if (edges?.size === 0)
      return t("Nothing at this token is among the strongest sources; the coloured tokens have some.");
    if (!options.guessing() || evolution.guesses(token).length) return "";
    return live
      ? t("The model's guesses at this token follow in a moment.")
      : t("The model's guesses at this token are not in this saved picture; save_html keeps all.");
  }
  function drawGrid(given: Shown): void {
    const { evolution, tokens } = given;
    const what = measure.value;
    const feature = followed();
    const kind =
      what === "concept" ? (feature?.split(".")[0] ?? "res") : kindChoice.value || evolution.kinds[0] || "res";
    const rows = what === "concept" ? conceptRows(evolution, feature) : measureRows(evolution, what, kind);
    const name = t(MEASURES.find(([one]) => one === what)?.[1] ?? what);
    special.hidden = true;
    messages.say(
      "concept",
      what === "concept" && !feature
        ? t("Follow a feature to see it in all layers: choose a block among the layers.")
        : null,
      "quiet",
    );
    grid.show({
      tokens,
      rows,
      full: what === "concept" ? 1 : null,
      unit: what === "concept" ? t("of its own maximum") : name,
      log: what === "norm",
      hue: hues[kind] ?? PALETTES.grey.light,
      selected: token,
      title: gridTitle(),
    });
  }
  function gridTitle(): string {
    const feature = measure.value === "concept" ? followed() : null;
    return feature ? `${feature} ${nameOf(feature)}` : (measure.selectedOptions[0]?.text ?? "");
  }
  function conceptRows(evolution: Evolution, feature: string | null): GridRow[] {
    if (feature === null) return [];
    const { features, values } = evolution.concept(trailOf(feature));
    const [first, last] = evolution.span;
    const kind = feature.split(".")[0];
    const rows: GridRow[] = [];
    for (let layer = last; layer >= first; layer--) {
      const at = features.findIndex((one) => one.startsWith(`${kind}.${layer}/`));
      const known = at < 0 ? null : (exact?.rows.get(features[at]) ?? values[at]);
      rows.push({ layer, name: at < 0 ? `${kind}.${layer}` : features[at], values: known });
    }
    return rows;
  }
  /** The browser has only what is among the strongest; the kernel has every value. */
  function wantConcept(feature: string): void {
    if (!live || exact?.asked === feature || exact?.features.includes(feature)) return;
    exact = { asked: feature, features: [], rows: new Map() };
    const mine = exact;
    options.concept(feature).then(
      ({ features, rows }) => {
        mine.features = features;
        rows.forEach((row, i) => {
          const values = new Float32Array(shown?.tokens.length ?? 0);
          for (const [position, value] of row) values[position] = value;
          mine.rows.set(features[i], values);
        });
        if (exact === mine) draw();
      },
      (error) => onError("concept", error),
    );
  }
  function measureRows(evolution: Evolution, what: string, kind: string): GridRow[] {
    const [first, last] = evolution.span;
    const every = Array.from({ length: evolution.tokens }, (_, at) => at);
    const rows: GridRow[] = [];
    if (what === "entropy") {
      const guesses = every.map((at) => new Map(evolution.guesses(at).map((one) => [one.layer, one.entropy])));
      for (const layer of [...evolution.guessed].reverse())
        rows.push({
          layer,
          name: t("layer {n}", { n: layer }),
          values: Float32Array.from(guesses, (one) => one.get(layer) ?? Number.NaN),
        });
      return rows;
    }
    for (let layer = last; layer >= first; layer--) {
      const site = evolution.siteAt(`${kind}.${layer}`);
      const value = (at: number) => evolution.measures(at, site)[what as "l0" | "norm" | "fvu"];
      // Special tokens' norms are hundreds of times the others' and would leave those without colour.
      const values =
        site < 0 ? null : Float32Array.from(every, (at) => (evolution.isSpecial(at) ? Number.NaN : value(at)));
      rows.push({ layer, name: `${kind}.${layer}`, values });
    }
    return rows;
  }

  // ---- what is said

  function summary(block: Block): HTMLElement[] {
    const [text] = names.get()[block.name] ?? [""];
    const facts = options.facts.get(block.name.split("/")[0], block.feature);
    const edge = found() && edgesAt(found(), token).get(block.name);
    const parts = [
      h(
        "div",
        { class: "gl-card-head" },
        h("span", { class: "gl-card-token", text: block.name }),
        h("span", {
          class: "gl-number",
          text: Number.isNaN(block.strength)
            ? t("maximum unknown")
            : t("strength {strength}", { strength: strengthText(block.strength) }),
        }),
        h("span", { class: "gl-quiet gl-number", text: t("raw {raw}", { raw: rawText(block.raw) }) }),
      ),
      h("div", { class: text ? "gl-inspect-name" : "gl-quiet", text: text || t("no label"), attrs: { dir: "auto" } }),
    ];
    if (edge) {
      const effect = signed(edge.effect);
      const moved =
        edge.effect < 0
          ? t("lowers the target by {effect}", { effect })
          : t("raises the target by {effect}", { effect });
      const text =
        edge.measured === null ? moved : t("{moved}, measured {effect}", { moved, effect: signed(edge.measured) });
      parts.push(h("div", { class: "gl-number", text }));
    }
    if (facts?.promotes.length)
      parts.push(
        h(
          "div",
          { class: "gl-inspect-chips" },
          h("span", { class: "gl-quiet", text: t("promotes") }),
          ...facts.promotes.slice(0, 6).map(([one]) => chip(one)),
        ),
      );
    return parts;
  }
  function hoverBlock(block: Block, anchor: Element): void {
    const content = h("div", {}, ...summary(block));
    const chain = column?.chainOf.get(block.name);
    const at = chain?.blocks.indexOf(block) ?? -1;
    for (const [ribbon, before] of [
      [chain?.ribbons[at - 1], true],
      [chain?.ribbons[at], false],
    ] as const)
      if (ribbon)
        content.append(
          h("div", {
            class: "gl-quiet gl-number",
            text: before
              ? t("from {feature}: {alike}", { feature: ribbon.source.name, alike: alike(ribbon) })
              : t("goes on as {feature}: {alike}", { feature: ribbon.target.name, alike: alike(ribbon) }),
          }),
        );
    card.show(anchor as HTMLElement, content);
  }
  const alike = ({ cosine, coactivation }: { cosine: number; coactivation: number }) =>
    Number.isNaN(coactivation)
      ? t("cosine {cosine}, co-activation not known", { cosine: cosine.toFixed(2) })
      : t("cosine {cosine}, fire together on {share} of their tokens", {
          cosine: cosine.toFixed(2),
          share: percentText(coactivation),
        });
  const ribbonCard = (ribbon: Ribbon) =>
    h(
      "div",
      {},
      h(
        "div",
        { class: "gl-card-head" },
        h("span", { class: "gl-card-token", text: `${ribbon.source.name} → ${ribbon.target.name}` }),
      ),
      h("div", { text: nameOf(ribbon.source.name), attrs: { dir: "auto" } }),
      h("div", { text: nameOf(ribbon.target.name), attrs: { dir: "auto" } }),
      h("div", { class: "gl-quiet gl-number", text: alike(ribbon) }),
    );
  const layerCard = (evolution: Evolution, layer: number) => {
    const guess = evolution.guesses(token).find((one) => one.layer === layer);
    const content = h(
      "div",
      {},
      h(
        "div",
        { class: "gl-card-head" },
        h("span", { class: "gl-card-token", text: t("after layer {n}", { n: layer }) }),
        h("span", {
          class: "gl-quiet gl-number",
          text: guess ? t("entropy {value} nats", { value: guess.entropy.toFixed(2) }) : "",
        }),
      ),
    );
    if (guess) content.append(guessRows(guess.tokens.map(({ text, probability }) => [text, probability])));
    evolution.sites.forEach((site, i) => {
      if (site.layer !== layer) return;
      const { l0, norm, fvu } = evolution.measures(token, i);
      const missed = Number.isNaN(fvu) ? "" : ` · ${"FVU"} ${fvu.toFixed(3)}`;
      content.append(
        h("div", {
          class: "gl-quiet gl-number",
          text: `${t("{site}: L0 {l0} · norm {norm}", { site: site.name, l0, norm: rawText(norm) })}${missed}`,
        }),
      );
    });
    return content;
  };

  /** The feature that is followed: what it is, its way through the layers, and what can be asked about it. */
  function drawSide(): void {
    const feature = followed();
    side.hidden = feature === null;
    clear.hidden = feature === null;
    clear.textContent = feature === null ? "" : `${feature} ×`;
    clear.setAttribute("aria-label", t("Following {feature}. Follow none", { feature: feature ?? "" }));
    if (feature === null || !shown || !column) return;
    const { evolution } = shown;
    const parsed = parseFeature(feature);
    const block = column.sites.flat().find(({ name }) => name === feature);
    const trail = trailOf(feature);
    wantConcept(feature);
    const on = new Map(column.sites.flat().map((one) => [one.name, one]));
    const here = trail.filter((one) => on.has(one));
    const strongest = here.reduce(
      (best, one) => ((on.get(one)?.shade ?? 0) > (on.get(best)?.shade ?? -1) ? one : best),
      here[0],
    );
    const story = here.length
      ? t("at this token from {first} to {last}, strongest in {best}", {
          first: here[0].split("/")[0],
          last: here[here.length - 1].split("/")[0],
          best: strongest.split("/")[0],
        })
      : t("not among the strongest features of this token");
    const path = h("div", {
      class: "gl-inspect-path",
      attrs: { role: "group", "aria-label": t("Through the layers") },
    });
    trail.forEach((one, i) => {
      if (i > 0) {
        const joint = evolution.joint(trail[i - 1], one);
        path.append(h("span", { class: "gl-quiet", text: "→", attrs: { title: joint ? alike(joint) : "" } }));
      }
      const strength = on.get(one);
      const step = button(`${one}${strength ? ` ${strengthText(strength.strength)}` : ""}`, {
        class: strength ? "gl-step-on" : "gl-step-off",
        "aria-current": String(one === feature),
        title: nameOf(one),
      });
      step.addEventListener("click", () => follow(one));
      path.append(step);
    });
    const cardButton = button(t("open its card"), { class: "gl-open-card" });
    cardButton.addEventListener("click", () => openCard(feature));
    const raised = button(t("what raised it here"), { class: "gl-raised" });
    raised.disabled = !block;
    raised.addEventListener("click", () => attribute(feature));
    const offered = [cardButton, raised];
    if (edgesAt(found(), token).get(feature)?.measured === null) {
      const out = button(t("take it out and measure"), { class: "gl-check-one" });
      out.addEventListener("click", () => busy("attribution", out, options.check(1, { feature, position: token })));
      offered.push(out);
    }
    const actions = h("div", { class: "gl-inspect-actions" }, ...(live ? offered : []));
    const head = block
      ? summary(block)
      : [
          h("div", { class: "gl-card-token", text: feature }),
          h("div", { text: nameOf(feature), attrs: { dir: "auto" } }),
        ];
    side.replaceChildren(
      h("div", { class: "gl-inspect-what" }, ...head),
      h("div", { class: "gl-inspect-way" }, h("div", { class: "gl-quiet", text: story }), path, actions),
    );
    if (live && parsed && options.facts.get(parsed.site, parsed.index) === undefined && asked !== feature) {
      asked = feature;
      options.facts.want(parsed.site, [parsed.index], signal).then(drawSide, (error) => onError("facts", error));
    }
  }
  let asked = "";

  function drawLeads(): void {
    const led = found();
    scrubber.colour(led && shown ? effectsByToken(led, shown.tokens.length) : null);
    leads.hidden = led === null;
    if (!led) return;
    const name = led.target.feature ?? `'${visibleText(led.target.text)}'`;
    const unit = led.target.feature === null ? t("logit") : t("activation");
    const all = button(t("show all features"), { class: "gl-lead-clear" });
    all.addEventListener("click", () => attribute(null));
    const check = button(t("check by taking the 5 strongest out"), { class: "gl-lead-check" });
    check.addEventListener("click", () => busy("attribution", check, options.check(5)));
    leads.replaceChildren(
      h("span", {
        text: t(
          "Only what leads to {target} ({unit} {value}): the {n} strongest of {all} effects carry {explained} of their sum, what the SAEs miss {error}. Dashed outlines lower it; tokens are coloured by what starts there.",
          {
            target: name,
            unit,
            value: rawText(led.value),
            n: led.edges.length,
            all: led.effects.toLocaleString("en"),
            explained: percentText(led.explained),
            error: percentText(led.error),
          },
        ),
      }),
      ...(live ? [check, all] : [all]),
      ...led.notes.map((note) => h("span", { class: "gl-quiet", text: note })),
    );
  }
  /** Next tokens to choose from: the last layer's guesses here. */
  function drawTargets(): void {
    if (!shown) return;
    const last = shown.evolution.guesses(token).at(-1);
    const led = found();
    const choices = (last?.tokens ?? []).map(({ id, text, probability }) =>
      h("option", {
        text: t("leads to {target} {share}", { target: `'${visibleText(text)}'`, share: percentText(probability) }),
        attrs: { value: String(id) },
      }),
    );
    const other = led && (led.target.feature !== null || !last?.tokens.some(({ id }) => id === led.target.token));
    const extra = other
      ? [
          h("option", {
            text: t("leads to {target}", { target: led.target.feature ?? `'${visibleText(led.target.text)}'` }),
            attrs: { value: "led" },
          }),
        ]
      : [];
    target.replaceChildren(h("option", { text: t("all features"), attrs: { value: "" } }), ...extra, ...choices);
    target.value = led ? (other ? "led" : String(led.target.token)) : "";
    target.hidden = view.get() !== "layers" || (!led && (!live || !choices.length));
  }
  function busy(subject: string, el: HTMLButtonElement | HTMLSelectElement, answer: Promise<unknown>): void {
    el.disabled = true;
    root.setAttribute("aria-busy", "true");
    messages.say("working", t("The kernel computes that: one pass of the model, and one back."), "quiet");
    answer
      .then(() => onError(subject, null))
      .catch((error) => onError(subject, error))
      .finally(() => {
        el.disabled = false;
        root.removeAttribute("aria-busy");
        messages.say("working", null);
        drawTargets();
      });
  }
  function attribute(what: string | number | null): void {
    rest();
    if (live) busy("attribution", target, options.attribute(what, token));
    else {
      // A saved picture cannot ask, but it can put the answer it has aside.
      kept = what !== null;
      refresh();
    }
  }
  function openCard(feature: string): void {
    if (live)
      options.openCard(feature).then(
        () => onError("card", null),
        (error) => onError("card", error),
      );
  }
  function tell(): void {
    if (!shown?.tokens[token]) return;
    const feature = followed();
    const at = { n: token + 1, token: tokenName(shown.tokens[token]) };
    said.textContent = feature
      ? t("token {n}, '{token}', following {feature} {name}", { ...at, feature, name: nameOf(feature) })
      : t("token {n}, '{token}'", at);
  }

  function drawNotes(): void {
    if (!shown) return;
    const unknown = shown.evolution.someUnknown
      ? [t("Dashed blocks: maximum unknown, sized by the largest value in this text.")]
      : [];
    messages.say("notes", [...shown.evolution.notes, ...unknown].join(" ") || null, "quiet");
  }

  // ---- controls

  function drawControls(): void {
    const layers = view.get() === "layers";
    for (const [name, one] of tabs) {
      one.setAttribute("aria-checked", String(name === view.get()));
      one.tabIndex = name === view.get() ? 0 : -1;
    }
    layersBox.hidden = !layers;
    gridBox.hidden = layers;
    bands.hidden = !layers || (shown?.evolution.kinds.length ?? 0) < 2;
    measure.hidden = layers;
    kindChoice.hidden = layers || ["concept", "entropy"].includes(measure.value);
    bands.querySelectorAll("button").forEach((one) => {
      one.setAttribute("aria-pressed", String(open.has(one.dataset.kind ?? "")));
    });
  }
  function refresh(): void {
    drawControls();
    drawTargets();
    drawLeads();
    draw();
  }
  function recolour(): void {
    const theme = root.dataset.glTheme === "dark" ? "dark" : "light";
    const order = [
      palette.get(),
      ...(["blue", "purple", "orange", "grey"] as const).filter((one) => one !== palette.get()),
    ];
    hues = Object.fromEntries(["res", "att", "mlp", "transcoder"].map((kind, i) => [kind, PALETTES[order[i]][theme]]));
    for (const [kind, hue] of Object.entries(hues)) root.style.setProperty(`--gl-band-${kind}`, hue.join(" "));
    root.style.setProperty("--gl-halo", theme === "dark" ? "20 22 26" : "255 255 255");
    root.style.setProperty("--gl-ink", theme === "dark" ? "#c3cddd" : "#46546c");
    if (shown && view.get() === "grid") draw();
  }
  function take() {
    if (!shown) return null;
    const name = `layers-${tokenName(shown.tokens[token]).replace(/[^\p{L}\p{N}]+/gu, "") || token}`;
    const style = getComputedStyle(root);
    const paper = style.getPropertyValue("--gl-paper").trim() || "#fff";
    const title = t("'{token}', position {position} · {model}", {
      token: tokenName(shown.tokens[token]),
      position: token,
      model: shown.about?.model ?? "",
    });
    if (view.get() === "layers") return { picture: standalone([plot.el, strip.el], title, paper), name };
    const made = grid.picture();
    if (!made) return null;
    // Styles are read from what is in the page.
    layersBox.after(made);
    made.setAttribute("fill", style.color);
    try {
      return { picture: standalone([made], gridTitle(), paper), name: "layers-by-tokens" };
    } finally {
      made.remove();
    }
  }

  on(
    measure,
    "change",
    () => {
      drawControls();
      draw();
    },
    signal,
  );
  on(kindChoice, "change", draw, signal);
  on(
    target,
    "change",
    () => {
      if (target.value === "led") return;
      const last = shown?.evolution.guesses(token).at(-1);
      const id = target.value === "" ? null : Number(target.value);
      attribute(id === null || last?.tokens.some((one) => one.id === id) ? id : null);
    },
    signal,
  );
  on(
    bands,
    "click",
    (event) => {
      const kind = event.target instanceof Element ? event.target.closest("button")?.dataset.kind : undefined;
      if (kind === undefined) return;
      if (!open.delete(kind)) open.add(kind);
      if (!open.size) open = new Set(shown?.evolution.kinds);
      drawControls();
      draw();
    },
    signal,
  );
  on(
    views,
    "keydown",
    (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      view.set(view.get() === "layers" ? "grid" : "layers");
      tabs.find(([name]) => name === view.get())?.[1].focus();
    },
    signal,
  );
  on(clear, "click", () => follow(null), signal);
  selection.subscribe((chosen) => {
    if (chosen.token !== null) token = chosen.token;
    draw();
    drawTargets();
    tell();
  }, signal);
  view.subscribe(refresh, signal);
  attribution.subscribe(() => {
    kept = true;
    refresh();
  }, signal);
  names.subscribe(draw, signal);
  const repaint = () => {
    paint(palette.get());
    recolour();
  };
  palette.subscribe(repaint, signal);
  repaint();
  const themes = new MutationObserver(recolour);
  themes.observe(root, { attributes: true, attributeFilter: ["data-gl-theme"] });
  atEnd(signal, () => themes.disconnect());
  let width = 0;
  onResize(
    root,
    () => {
      if (Math.abs(root.clientWidth - width) < 2) return;
      width = root.clientWidth;
      measureRoom();
      draw();
    },
    signal,
  );
  globalThis.addEventListener("scroll", () => card.hide(), { capture: true, passive: true, signal });
  atEnd(signal, () => card.hide());
  const step = (by: number) => () => go(token + by);
  keys(
    root,
    {
      ArrowLeft: step(-1),
      ArrowRight: step(1),
      "[": step(-1),
      "]": step(1),
      Home: () => go(0),
      End: () => go((shown?.tokens.length ?? 1) - 1),
      g: () => view.set(view.get() === "layers" ? "grid" : "layers"),
      c: () => {
        const feature = followed();
        if (feature !== null) openCard(feature);
      },
      Escape: () => {
        card.hide();
        follow(null);
      },
      ArrowUp: () => undefined,
      ArrowDown: () => undefined,
    },
    signal,
  );

  return {
    el: root,
    banner: messages,
    below,
    show(given) {
      const same = shown?.tokens === given.tokens;
      shown = given;
      exact = null;
      measureRoom();
      token = selection.get().token ?? token;
      open = new Set(given.evolution.kinds);
      bands.replaceChildren(
        ...given.evolution.kinds.map((kind) =>
          h("button", {
            text: t(BANDS.find(([one]) => one === kind)?.[1] ?? kind),
            attrs: { type: "button", "data-kind": kind },
          }),
        ),
      );
      kindChoice.replaceChildren(
        ...given.evolution.kinds.map((kind) =>
          h("option", { text: t(BANDS.find(([one]) => one === kind)?.[1] ?? kind), attrs: { value: kind } }),
        ),
      );
      if (!same) scrubber.setTokens(given.tokens);
      drawNotes();
      messages.say(
        "empty",
        given.evolution.sites.length ? null : t("No site is open: there is only the model's guess."),
        "quiet",
      );
      about.show(given.about);
      refresh();
    },
    learn(guesses) {
      shown?.evolution.learn(guesses);
      drawNotes();
      refresh();
    },
  };
}

const signed = (value: number) => `${value < 0 ? "−" : "+"}${rawText(Math.abs(value))}`;

export function readView(given: unknown): ViewName {
  return given === "grid" ? "grid" : "layers";
}

export function readNames(given: unknown): Names {
  return typeof given === "object" && given !== null ? (given as Names) : {};
}
