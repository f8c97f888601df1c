/** A text as a row of token bubbles, coloured by strength. */

import { opacity } from "../core/colour";
import { hasGap, tokenPieces } from "../core/text";
import { type Token, textOf } from "../core/token";
import { t } from "../core/words";
import { closestNumber, h } from "./dom";
import { fillPieces } from "./text";
import "./token-strip.css";

export interface TokenStripCallbacks {
  /** The token under the pointer or with the focus; `null` when it is left. */
  onHover(token: number | null): void;
  onSelect(token: number): void;
  signal: AbortSignal;
}

export interface TokenStrip {
  el: HTMLElement;
  setTokens(tokens: Token[]): void;
  /** Colours every token; 0 is no colour. Special tokens stay without. */
  colour(shades: Float32Array | null): void;
  /** What a screen reader says at a token. */
  label(name: (token: number) => string): void;
  select(token: number | null): void;
  /** The element of a token, or undefined. */
  at(token: number): HTMLElement | undefined;
  /** Moves the focus by one: -1, 1, or to the nearest token of the line above or below. */
  move(where: "previous" | "next" | "first" | "last" | "up" | "down"): void;
  /** The token that the keyboard is at. */
  readonly current: number;
}

export function tokenStrip({ onHover, onSelect, signal }: TokenStripCallbacks): TokenStrip {
  const el = h("div", {
    class: "gl-strip",
    attrs: { role: "listbox", "aria-label": t("Tokens"), "aria-orientation": "horizontal" },
  });
  let tokens: Token[] = [];
  let spans: HTMLElement[] = [];
  let painted = new Float32Array(0);
  let selected: number | null = null;
  let current = 0;

  const setCurrent = (token: number) => {
    if (spans[current]) spans[current].tabIndex = -1;
    current = token;
    if (spans[current]) spans[current].tabIndex = 0;
  };
  const focus = (token: number) => {
    if (!spans[token]) return;
    setCurrent(token);
    spans[token].focus();
    spans[token].scrollIntoView?.({ block: "nearest" });
  };
  const line = (direction: -1 | 1): number => {
    const from = spans[current].getBoundingClientRect();
    const middle = from.left + from.width / 2;
    let best = current;
    let distance = Number.POSITIVE_INFINITY;
    let row: number | undefined;
    for (let token = current + direction; spans[token]; token += direction) {
      const box = spans[token].getBoundingClientRect();
      const apart = (box.top - from.top) * direction;
      if (apart < from.height / 2) continue;
      row ??= box.top;
      if (Math.abs(box.top - row) > from.height / 2) break;
      const away = Math.abs(box.left + box.width / 2 - middle);
      if (away < distance) [best, distance] = [token, away];
    }
    return best;
  };

  el.addEventListener("pointerover", (event) => onHover(closestNumber(event.target, "token")), { signal });
  el.addEventListener("pointerleave", () => onHover(null), { signal });
  el.addEventListener(
    "focusin",
    (event) => {
      const token = closestNumber(event.target, "token");
      if (token === null) return;
      setCurrent(token);
      if (event.target instanceof Element && event.target.matches(":focus-visible")) onHover(token);
    },
    { signal },
  );
  el.addEventListener("focusout", () => onHover(null), { signal });
  el.addEventListener(
    "click",
    (event) => {
      const token = closestNumber(event.target, "token");
      // The end of a drag that marks text is no choice of a token.
      if (token === null || markedRange(el)) return;
      setCurrent(token);
      onSelect(token);
    },
    { signal },
  );
  el.addEventListener(
    "copy",
    (event) => {
      const marked = markedTokens(el, spans);
      if (!marked.length || !event.clipboardData) return;
      event.clipboardData.setData("text/plain", textOf(marked.map((token) => tokens[token])));
      event.preventDefault();
    },
    { signal },
  );

  return {
    el,
    get current() {
      return current;
    },
    setTokens(given) {
      tokens = given;
      painted = new Float32Array(given.length);
      selected = null;
      const parts: Node[] = [];
      spans = given.map((token, i) => {
        const gap = i > 0 && hasGap(token.text);
        const span = h("span", {
          class: token.special ? "gl-token gl-special" : "gl-token",
          attrs: { role: "option", "data-token": i, tabindex: -1, "aria-selected": "false" },
        });
        fillPieces(span, tokenPieces(token, gap));
        // A real space between bubbles lets lines break there, and only there.
        if (gap) parts.push(document.createTextNode(" "));
        parts.push(span);
        const breaks = token.special ? 0 : Math.min(token.text.split("\n").length - 1, 2);
        for (let n = 0; n < breaks; n++) parts.push(h("br"));
        return span;
      });
      el.replaceChildren(...parts);
      setCurrent(Math.min(current, Math.max(given.length - 1, 0)));
    },
    colour(shades) {
      for (let token = 0; token < spans.length; token++) {
        const shade = tokens[token].special ? 0 : opacity(shades?.[token] ?? 0);
        if (Math.abs(painted[token] - shade) < 1e-4) continue;
        painted[token] = shade;
        spans[token].style.setProperty("--gl-shade", shade.toFixed(3));
      }
    },
    label(name) {
      spans.forEach((span, token) => {
        span.setAttribute("aria-label", name(token));
      });
    },
    select(token) {
      if (token === selected) return;
      if (selected !== null) spans[selected]?.setAttribute("aria-selected", "false");
      selected = token;
      if (token !== null) spans[token]?.setAttribute("aria-selected", "true");
    },
    at: (token) => spans[token],
    move(where) {
      if (!spans.length) return;
      // The first key shows where the keyboard is; the next ones move.
      const inside = el.contains((el.getRootNode() as Document | ShadowRoot).activeElement);
      if (!inside) focus(current);
      else if (where === "previous") focus(Math.max(current - 1, 0));
      else if (where === "next") focus(Math.min(current + 1, spans.length - 1));
      else if (where === "first") focus(0);
      else if (where === "last") focus(spans.length - 1);
      else focus(line(where === "up" ? -1 : 1));
    },
  };
}

/** What is marked inside the strip, if anything. */
function markedRange(el: HTMLElement): Range | null {
  // Chromium keeps a shadow root's selection on the root itself.
  const root = el.getRootNode() as (Document | ShadowRoot) & { getSelection?: () => globalThis.Selection | null };
  const selection = root.getSelection?.() ?? document.getSelection();
  if (!selection || selection.isCollapsed || selection.rangeCount === 0) return null;
  const range = selection.getRangeAt(0);
  return range.intersectsNode(el) ? range : null;
}

function markedTokens(el: HTMLElement, spans: HTMLElement[]): number[] {
  const range = markedRange(el);
  return range ? spans.flatMap((span, token) => (range.intersectsNode(span) ? [token] : [])) : [];
}
