/** Token texts as elements: marks for what cannot be seen, each isolated from the direction of its neighbours. */

import { type Piece, visiblePieces } from "../core/text";
import { h } from "./dom";

const STACK = /\p{M}{3,}/u;

export function fillPieces(el: HTMLElement, pieces: Piece[]): void {
  el.replaceChildren(
    ...pieces.map((piece) => (piece.kind === "text" ? piece.text : h("span", { class: "gl-mark", text: piece.text }))),
  );
  el.classList.toggle(
    "gl-stack",
    pieces.some((piece) => STACK.test(piece.text)),
  );
}

/** A small chip with any text in it, white space shown. */
export function chip(text: string, attrs: Record<string, string> = {}): HTMLElement {
  const el = h("span", { class: "gl-chip", attrs });
  fillPieces(el, visiblePieces(text));
  return el;
}
