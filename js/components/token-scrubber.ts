/** A text on one line: press and move over it, or walk with the arrows. Only the tokens in sight are drawn. */

import { opacity } from "../core/colour";
import { tokenName, tokenPieces } from "../core/text";
import type { Token } from "../core/token";
import { t } from "../core/words";
import { closestNumber, h, on, onResize } from "./dom";
import { fillPieces } from "./text";
import "./token-scrubber.css";

export interface TokenScrubber {
  el: HTMLElement;
  setTokens(tokens: Token[]): void;
  select(token: number): void;
  /** Colours tokens by what starts there; null colours none. */
  colour(shades: Float32Array | null): void;
  focus(): void;
}

const LETTER = 8.2;
const PADDING = 13;
const SPARE = 300;

export function tokenScrubber({
  onScrub,
  onRest,
  signal,
}: {
  onScrub(token: number): void;
  onRest(): void;
  signal: AbortSignal;
}): TokenScrubber {
  const line = h("div", {
    class: "gl-scrub-line",
    attrs: { role: "listbox", "aria-label": t("Tokens"), "aria-orientation": "horizontal", tabindex: 0 },
  });
  const el = h("div", { class: "gl-scrub" }, line);
  let tokens: Token[] = [];
  let lefts = new Float64Array(1);
  let selected = 0;
  let shades: Float32Array | null = null;
  let drawn = new Map<number, HTMLElement>();
  let pressed = false;

  const place = (token: number): HTMLElement => {
    const text = tokens[token];
    const span = h("span", {
      class: text.special ? "gl-scrub-token gl-scrub-special" : "gl-scrub-token",
      attrs: {
        role: "option",
        id: `${line.id}-${token}`,
        "data-token": token,
        title: t("{token} · position {position}", { token: tokenName(text), position: token }),
        "aria-label": t("token {n} of {all}, '{token}'", {
          n: token + 1,
          all: tokens.length,
          token: tokenName(text),
        }),
        "aria-posinset": token + 1,
        "aria-setsize": tokens.length,
      },
    });
    span.style.left = `${lefts[token]}px`;
    span.style.width = `${lefts[token + 1] - lefts[token] - 3}px`;
    fillPieces(span, tokenPieces(text, true));
    return span;
  };
  const mark = () => {
    for (const [token, span] of drawn) {
      span.setAttribute("aria-selected", String(token === selected));
      span.style.setProperty("--gl-shade", opacity(shades?.[token] ?? 0).toFixed(3));
    }
    if (drawn.has(selected)) line.setAttribute("aria-activedescendant", `${line.id}-${selected}`);
  };
  const draw = () => {
    const from = el.scrollLeft - SPARE;
    const to = el.scrollLeft + (el.clientWidth || 900) + SPARE;
    const next = new Map<number, HTMLElement>();
    // The first token that ends in sight, by halving.
    let [low, high] = [0, tokens.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (lefts[middle + 1] < from) low = middle + 1;
      else high = middle;
    }
    for (let token = low; token < tokens.length && lefts[token] <= to; token++)
      next.set(token, drawn.get(token) ?? place(token));
    drawn = next;
    line.replaceChildren(...next.values());
    mark();
  };
  const reveal = () => {
    if (!tokens.length || el.clientWidth === 0) return;
    const [left, right] = [lefts[selected], lefts[selected + 1]];
    if (left < el.scrollLeft + 24) el.scrollLeft = Math.max(left - 24, 0);
    else if (right > el.scrollLeft + el.clientWidth - 24) el.scrollLeft = right - el.clientWidth + 24;
  };
  const scrub = (target: EventTarget | null) => {
    const token = closestNumber(target, "token");
    if (token !== null && token !== selected) onScrub(token);
  };

  line.id = `gl-scrub-${Math.floor(Math.random() * 1e9).toString(36)}`;
  el.addEventListener("scroll", draw, { passive: true, signal });
  on(
    line,
    "pointerdown",
    (event) => {
      if (event.button !== 0) return;
      pressed = true;
      scrub(event.target);
    },
    signal,
  );
  on(
    line,
    "pointermove",
    (event) => {
      // A finger that is down keeps its first target: what is under it must be asked for.
      const root = el.getRootNode() as Document | ShadowRoot;
      if (pressed) scrub(root.elementFromPoint?.(event.clientX, event.clientY) ?? event.target);
    },
    signal,
  );
  for (const name of ["pointerup", "pointercancel"])
    globalThis.addEventListener(
      name,
      () => {
        if (pressed) onRest();
        pressed = false;
      },
      { signal },
    );
  onResize(
    el,
    () => {
      reveal();
      draw();
    },
    signal,
  );

  return {
    el,
    setTokens(given) {
      tokens = given;
      drawn = new Map();
      lefts = new Float64Array(given.length + 1);
      given.forEach((token, i) => {
        const letters = Math.min([...tokenName(token).replace(/^␣(?=.)/u, "")].length, 24);
        lefts[i + 1] = lefts[i] + Math.max(letters * LETTER * (token.special ? 0.85 : 1) + PADDING, 22);
      });
      line.style.width = `${lefts[given.length]}px`;
      draw();
    },
    select(token) {
      selected = token;
      reveal();
      if (drawn.has(token)) mark();
      else draw();
    },
    colour(given) {
      shades = given;
      mark();
    },
    focus: () => line.focus(),
  };
}
