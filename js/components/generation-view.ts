/** A text as it is made: tokens appear at its end, and may be coloured. */

import { opacity } from "../core/colour";
import { asToken, type NewToken } from "../core/desk";
import { percentText } from "../core/numbers";
import { hasGap, tokenName, tokenPieces } from "../core/text";
import { t } from "../core/words";
import { h } from "./dom";
import { fillPieces } from "./text";
import "./token-strip.css";
import "./generation-view.css";

export interface GenerationView {
  el: HTMLElement;
  show(view: {
    title: string;
    tokens: NewToken[];
    /** Strength of the chosen feature per token, or null. */
    shades: number[] | null;
    /** Whether more is on its way. */
    busy: boolean;
    /** How it ended, and what else is to be said. */
    foot: string[];
    /** The first token that differs from the default text. */
    diverges: number | null;
    /** What stands there when there is no token. */
    nothing: string;
  }): void;
}

const same = (one: NewToken, two: NewToken) => one.id === two.id && one.text === two.text && one.bytes === two.bytes;

export function generationView(kind: string): GenerationView {
  const title = h("div", { class: "gl-gen-title" });
  const text = h("div", { class: "gl-gen-text", attrs: { dir: "auto", tabindex: 0, role: "group" } });
  const foot = h("div", { class: "gl-gen-foot gl-quiet" });
  const el = h("div", { class: `gl-gen gl-gen-${kind}` }, title, text, foot);
  let shown: NewToken[] = [];
  let spans: HTMLElement[] = [];

  const add = (token: NewToken) => {
    const gap = spans.length > 0 && hasGap(token.text);
    const span = h("span", { class: token.special ? "gl-token gl-special" : "gl-token gl-gen-token" });
    // While a character is not complete its pieces have no text; they are drawn when they have.
    if (token.text !== "" || token.bytes) fillPieces(span, tokenPieces(asToken(token), gap));
    if (token.logprob !== null)
      span.title = t("{token} · probability {share}", {
        token: tokenName(asToken(token)),
        share: percentText(Math.exp(token.logprob)),
      });
    if (gap) text.append(" ");
    text.append(span);
    const breaks = token.special ? 0 : Math.min(token.text.split("\n").length - 1, 2);
    for (let n = 0; n < breaks; n++) text.append(h("br"));
    spans.push(span);
  };

  return {
    el,
    show({ title: name, tokens, shades, busy, foot: lines, diverges, nothing }) {
      title.textContent = name;
      text.setAttribute("aria-label", t("{name} text", { name }));
      text.setAttribute("aria-busy", String(busy));
      el.classList.toggle("gl-gen-busy", busy);
      // While a run begins the last text stays, pale, so that nothing jumps.
      const waits = busy && tokens.length === 0 && shown.length > 0;
      el.classList.toggle("gl-gen-stale", waits);
      if (!waits) {
        let kept = 0;
        while (kept < shown.length && kept < tokens.length && same(shown[kept], tokens[kept])) kept++;
        if (kept < shown.length || shown.length === 0) {
          text.replaceChildren();
          spans = [];
          kept = 0;
        }
        for (const token of tokens.slice(kept)) add(token);
        shown = tokens;
        if (!tokens.length && !busy) text.replaceChildren(h("span", { class: "gl-quiet", text: nothing }));
      }
      spans.forEach((span, i) => {
        span.style.setProperty("--gl-shade", opacity(waits ? 0 : (shades?.[i] ?? 0)).toFixed(3));
        span.classList.toggle("gl-diverges", i === diverges);
      });
      const words = lines.join(" · ");
      if (foot.textContent !== words) foot.textContent = words;
    },
  };
}
