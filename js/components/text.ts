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

/** A sentence with elements in it: `{name}` in a text is where `nodes.name` stands, wherever a language puts it. */
export function sentence(text: string, nodes: Record<string, Node>): (Node | string)[] {
  return text
    .split(/(\{\w+\})/)
    .filter(Boolean)
    .map((part) => nodes[part.slice(1, -1)] ?? part);
}

/** A small chip with any text in it, white space shown. */
export function chip(text: string, attrs: Record<string, string> = {}): HTMLElement {
  const el = h("span", { class: "gl-chip", attrs });
  fillPieces(el, visiblePieces(text));
  return el;
}
