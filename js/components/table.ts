/** Every feature that is on in a text, or at its selected token, as a table. */

import type { Picture } from "../core/picture";
import { tokenName } from "../core/text";
import { t, tn } from "../core/words";
import { aboutLine } from "./about";
import { banner } from "./banner";
import { h } from "./dom";
import { featureRows } from "./feature-rows";
import { keys } from "./keys";
import { sitePicker } from "./site-picker";
import { themed } from "./theme";
import { choices, type View, type ViewOptions } from "./view";
import "./root.css";
import "./table.css";

/** One question to the kernel asks for at most so many features. */
const BATCH = 512;
const PAUSE = 60;

export function table(options: ViewOptions): View {
  const { selection, palette, facts, onError, signal } = options;
  let picture: Picture | null = null;
  let factsWanted = new AbortController();
  let pause: ReturnType<typeof setTimeout> | undefined;
  let shown: string | null = null;

  const choice = choices(options, () => picture);
  const wantFacts = (features: number[]) => {
    clearTimeout(pause);
    // While the table scrolls, what was in sight a moment ago is no longer asked for.
    pause = setTimeout(async () => {
      if (!picture || signal.aborted) return;
      factsWanted.abort();
      const request = new AbortController();
      factsWanted = request;
      try {
        for (let i = 0; i < features.length; i += BATCH) {
          await facts.want(picture.site, features.slice(i, i + BATCH), AbortSignal.any([request.signal, signal]));
          onError("facts", null);
        }
        rows.refresh();
        drawCount();
      } catch (error) {
        onError("facts", error);
      }
    }, PAUSE);
  };

  const messages = banner();
  const sites = sitePicker((site) => choice.pickSite(site, sites), signal);
  const filter = h("input", {
    class: "gl-filter",
    attrs: { type: "search", placeholder: t("filter: number or text"), "aria-label": t("Filter features") },
  });
  const count = h("span", { class: "gl-quiet gl-count gl-number", attrs: { role: "status" } });
  const place = h("button", { class: "gl-clear", attrs: { type: "button", title: t("Show the whole text") } });
  const rows = featureRows({
    onSelect: choice.pickFeature,
    onNeeded: wantFacts,
    facts: (feature) => (picture ? facts.get(picture.site, feature) : undefined),
    tokenText: (position) => picture?.tokens[position]?.text || (picture ? tokenName(picture.tokens[position]) : ""),
    signal,
  });
  const about = aboutLine(t("j k features · [ ] sites · Esc clears"));
  const root = h(
    "div",
    { class: "gl-root gl-features" },
    h("div", { class: "gl-head" }, sites.el, filter, place, count),
    messages.el,
    rows.el,
    about.el,
  );
  const paint = themed(root, signal);

  const drawCount = () => {
    count.textContent = tn("{n} feature", "{n} features", rows.count);
  };
  const draw = () => {
    if (!picture) return;
    const { tokens, strengths } = picture;
    const token = choice.token();
    place.hidden = token === null;
    place.textContent = token === null ? "" : t("at {token} ×", { token: tokenName(tokens[token]) });
    if (shown !== `${token}`) {
      shown = `${token}`;
      rows.show(
        strengths === null
          ? []
          : token === null
            ? strengths.peaks()
            : strengths.at(token).map((active) => ({ ...active, token })),
      );
      drawCount();
    }
    rows.select(choice.feature());
  };

  selection.subscribe(draw, signal);
  const recolour = () => paint(palette.get());
  palette.subscribe(recolour, signal);
  recolour();
  place.addEventListener("click", () => choice.clear("token"), { signal });
  filter.addEventListener(
    "input",
    () => {
      rows.filter(filter.value);
      drawCount();
    },
    { signal },
  );
  signal.addEventListener("abort", () => clearTimeout(pause), { once: true });
  keys(
    root,
    {
      j: () => choice.setFeature(rows.step(1)),
      k: () => choice.setFeature(rows.step(-1)),
      "[": () => choice.pickSite(sites.step(-1), sites),
      "]": () => choice.pickSite(sites.step(1), sites),
      Escape: () => choice.clear(),
    },
    signal,
  );

  return {
    el: root,
    banner: messages,
    show(given) {
      picture = given;
      shown = null;
      sites.show(given.sites, given.site, given.live);
      about.show(given.about);
      draw();
    },
  };
}
