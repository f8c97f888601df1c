/** A text with its features: bubbles to look at, and the list of what is on at one of them. */

import { rawText, strengthText } from "../core/numbers";
import type { Picture } from "../core/picture";
import { local } from "../core/synced";
import { tokenName } from "../core/text";
import type { Token } from "../core/token";
import { t } from "../core/words";
import { aboutLine } from "./about";
import { banner } from "./banner";
import { type Below, below } from "./below";
import { h } from "./dom";
import { featureList } from "./feature-list";
import { fidelityLight } from "./fidelity-light";
import { keys } from "./keys";
import { legend } from "./legend";
import { sitePicker } from "./site-picker";
import { chip, sentence } from "./text";
import { themed } from "./theme";
import { guessRows, tokenCard } from "./token-card";
import { tokenStrip } from "./token-strip";
import { tooltip } from "./tooltip";
import { choices, type View, type ViewOptions } from "./view";
import "./root.css";
import "./heatmap.css";

const TOP = 5;
const LONGEST_LIST = 500;

export interface HeatmapOptions extends ViewOptions {
  /** Opens the card of a feature under the text, and closes it. */
  card: { open(feature: string): Promise<unknown>; close(): Promise<unknown> };
}

export function heatmap(options: HeatmapOptions): View & { below: Below } {
  const { selection, palette, facts, fidelity, measure, onError, signal } = options;
  let picture: Picture | null = null;
  let factsWanted = new AbortController();
  let listed: string | null = null;
  let measuring: { site: string; failed: boolean } | null = null;
  const hover = local<number | null>(null);

  const choice = choices(options, () => picture);

  const messages = banner();
  const sites = sitePicker((site) => choice.pickSite(site, sites), signal);
  const light = fidelityLight(signal);
  const key = legend((name) => palette.set(name), signal);
  const card = tooltip();
  const clear = h("button", { class: "gl-clear", attrs: { type: "button", title: t("Clear (Escape)") } });
  const settle = (answer: Promise<unknown>) =>
    answer.then(
      () => onError("card", null),
      (error) => onError("card", error),
    );
  const opener = h("button", { class: "gl-opener", text: t("card"), attrs: { type: "button" } });
  opener.addEventListener("click", () => openCard(), { signal });
  const openCard = () => {
    const { feature } = selection.get();
    if (feature !== null && picture?.live) settle(options.card.open(feature));
  };
  const under = below(() => settle(options.card.close()), signal);
  const strip = tokenStrip({ onHover: (token) => hover.set(token), onSelect: choice.pickToken, signal });
  const next = h("div", { class: "gl-next" });
  const list = featureList({
    onSelect: choice.pickFeature,
    onShown: wantFacts,
    facts: (feature) => (picture ? facts.get(picture.site, feature) : undefined),
    signal,
  });
  const side = h("div", { class: "gl-side" }, list.el, next);
  const about = aboutLine(t("← → tokens · j k features · c card · [ ] sites · Esc clears"));
  const live = h("div", { class: "gl-unseen", attrs: { role: "status", "aria-live": "polite" } });
  const root = h(
    "div",
    { class: "gl-root gl-heatmap" },
    h("div", { class: "gl-head" }, sites.el, clear, opener, light.el, key.el),
    messages.el,
    h("div", { class: "gl-body" }, h("div", { class: "gl-page" }, strip.el), side),
    about.el,
    under.el,
    live,
    card.el,
  );
  const paint = themed(root, signal);

  function wantFacts(features: number[]): void {
    if (!picture || !features.length) return;
    factsWanted.abort();
    factsWanted = new AbortController();
    facts
      .want(picture.site, features, AbortSignal.any([factsWanted.signal, signal]))
      .then(() => {
        onError("facts", null);
        list.refresh();
      })
      .catch((error) => onError("facts", error));
  }

  const label = (token: number): string => {
    const { tokens, strengths } = picture as Picture;
    const start = t("token {n} of {all}, '{token}'", {
      n: token + 1,
      all: tokens.length,
      token: spoken(tokens[token]),
    });
    if (tokens[token].special) return t("{start}, special", { start });
    if (!strengths) return start;
    const feature = choice.feature();
    if (feature !== null) {
      const active = strengths.one(token, feature);
      return active
        ? t("{start}, feature {feature} at {strength}", { start, feature, strength: spokenStrength(active) })
        : t("{start}, feature {feature} is off", { start, feature });
    }
    const top = strengths.top(token);
    return top
      ? t("{start}, strongest feature {feature} at {strength}", {
          start,
          feature: top.feature,
          strength: spokenStrength(top),
        })
      : t("{start}, no feature is on", { start });
  };

  const drawColours = () => {
    const feature = choice.feature();
    const strengths = picture?.strengths ?? null;
    strip.colour(strengths && (feature === null ? strengths.strongest() : strengths.shades(feature)));
    strip.label(label);
    list.select(feature);
    clear.hidden = feature === null;
    clear.textContent = feature === null ? "" : `${selection.get().feature} ×`;
    opener.hidden = clear.hidden || !picture?.live;
    opener.setAttribute("aria-label", t("Card of {feature}", { feature: selection.get().feature ?? "" }));
    opener.title = t("What does this feature mean? Opens its card");
    clear.setAttribute(
      "aria-label",
      t("Feature {feature} colours the text. Clear", { feature: selection.get().feature ?? "" }),
    );
    if (!strengths) key.show(picture?.site ? "" : t("no site open: tokens and guesses only"), null);
    else if (feature === null)
      key.show(
        strengths.someUnknown
          ? t("strongest feature on each token; where a maximum is unknown, its largest value in this text is 1.0")
          : t("strongest feature on each token; 1.0 = that feature's own maximum"),
        ["0", "1.0"],
      );
    else {
      const maximum = strengths.maximum(feature);
      const raw = rawText(strengths.scale(feature));
      if (Number.isNaN(maximum))
        key.show(t("maximum unknown: scaled by the largest value in this text"), ["0", t("raw {raw}", { raw })]);
      else key.show(t("strength; 1.0 = the feature's own maximum"), ["0", t("1.0 (raw {raw})", { raw })]);
    }
  };

  const drawList = () => {
    if (!picture) return;
    const { tokens, strengths, guesses } = picture;
    const token = choice.token();
    strip.select(token);
    const state = `${token}`;
    if (listed !== state) {
      listed = state;
      const name = token === null ? "" : tokenName(tokens[token]);
      list.el.hidden = strengths === null;
      if (strengths && token !== null)
        list.show(
          sentence(t("on at {token} · position {position}", { position: token }), { token: chip(name) }),
          strengths.at(token),
          tokens[token].special ? t("Special tokens are left out.") : t("No feature is on here."),
        );
      else if (strengths)
        list.show(
          [t("strongest in the text")],
          strengths.peaks().slice(0, LONGEST_LIST),
          t("No feature is on in this text."),
        );
      const expected = token === null ? [] : (guesses?.[token] ?? []);
      next.hidden = expected.length === 0;
      next.replaceChildren(
        h("div", { class: "gl-list-title" }, ...sentence(t("the model expects after {token}"), { token: chip(name) })),
        guessRows(expected),
      );
      side.hidden = strengths === null && next.hidden;
    }
  };

  const drawLight = () => {
    const site = picture?.site ?? "";
    const known = fidelity.get();
    if (!site) light.show("hidden");
    else if (known?.site === site) light.show(known);
    else light.show(measuring?.site === site && !measuring.failed ? "waiting" : null);
  };

  /** Nothing is wrong in silence: what was not measured while reading is asked for once it is looked at. */
  const wantLight = () => {
    if (!picture?.live || !picture.site || fidelity.get()?.site === picture.site) return;
    if (measuring?.site === picture.site) return;
    const asked = { site: picture.site, failed: false };
    measuring = asked;
    measure(asked.site, signal).catch(() => {
      // A trace from a file, or a closed loupe: the light says that it was not measured.
      asked.failed = true;
      drawLight();
    });
  };

  const drawCard = (token: number | null) => {
    const anchor = token === null ? undefined : strip.at(token);
    if (!picture || token === null || !anchor) {
      card.hide();
      return;
    }
    const { tokens, strengths, guesses } = picture;
    card.show(
      anchor,
      tokenCard({
        token: tokens[token],
        position: token,
        strongest: strengths?.at(token, TOP) ?? null,
        guesses: guesses?.[token] ?? null,
      }),
    );
  };

  const announce = () => {
    const token = choice.token();
    const feature = choice.feature();
    const parts = [];
    if (token !== null && picture)
      parts.push(t("token {n}, '{token}', selected", { n: token + 1, token: spoken(picture.tokens[token]) }));
    if (feature !== null) parts.push(t("text coloured by feature {feature}", { feature }));
    live.textContent = parts.join("; ") || t("nothing selected");
  };

  hover.subscribe(drawCard, signal);
  selection.subscribe(() => {
    drawList();
    drawColours();
    announce();
  }, signal);
  fidelity.subscribe(drawLight, signal);
  const recolour = () => {
    paint(palette.get());
    key.setPalette(palette.get());
  };
  palette.subscribe(recolour, signal);
  recolour();
  clear.addEventListener("click", () => choice.clear("feature"), { signal });
  const scrolled = () => {
    const token = hover.get();
    // The keyboard scrolls to the token it goes to; a pointer is left behind.
    if (token !== null && strip.at(token)?.matches(":focus-visible")) drawCard(token);
    else hover.set(null);
  };
  globalThis.addEventListener("scroll", scrolled, { capture: true, passive: true, signal });
  signal.addEventListener("abort", () => card.hide(), { once: true });

  keys(
    root,
    {
      ArrowLeft: () => strip.move("previous"),
      ArrowRight: () => strip.move("next"),
      ArrowUp: () => strip.move("up"),
      ArrowDown: () => strip.move("down"),
      Home: () => strip.move("first"),
      End: () => strip.move("last"),
      c: openCard,
      j: () => choice.setFeature(list.step(1)),
      k: () => choice.setFeature(list.step(-1)),
      "[": () => choice.pickSite(sites.step(-1), sites),
      "]": () => choice.pickSite(sites.step(1), sites),
      Escape: () => {
        hover.set(null);
        choice.clear();
      },
    },
    signal,
  );
  strip.el.addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      event.stopPropagation();
      choice.pickToken(strip.current);
    },
    { signal },
  );

  return {
    el: root,
    banner: messages,
    below: under,
    show(given) {
      const sameText = picture?.tokens === given.tokens;
      const otherSite = picture !== null && picture.site !== given.site;
      picture = given;
      hover.set(null);
      listed = null;
      if (!sameText) strip.setTokens(given.tokens);
      sites.show(given.sites, given.site, given.live);
      about.show(given.about);
      drawList();
      drawColours();
      wantLight();
      drawLight();
      if (otherSite) live.textContent = given.site ? t("site {site}", { site: given.site }) : t("no site open");
    },
  };
}

/** A text as a screen reader should get it: with its space, and names instead of marks where there is nothing else. */
function spoken(token: Token): string {
  return token.text.trim() === "" ? tokenName(token) : token.text;
}

function spokenStrength(active: { strength: number; raw: number }): string {
  return Number.isNaN(active.strength) ? t("raw {raw}", { raw: rawText(active.raw) }) : strengthText(active.strength);
}
