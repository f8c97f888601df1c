/** What the tooltip says about a token. */

import { percentText, rawText, strengthText } from "../core/numbers";
import type { Active } from "../core/strengths";
import { tokenName } from "../core/text";
import type { Guess, Token } from "../core/token";
import { t } from "../core/words";
import { bar } from "./bar";
import { h } from "./dom";
import { chip } from "./text";

export interface TokenCard {
  token: Token;
  position: number;
  /** Strongest first; `null` when no site is open. */
  strongest: Active[] | null;
  guesses: Guess[] | null;
}

export function tokenCard({ token, position, strongest, guesses }: TokenCard): HTMLElement {
  const card = h(
    "div",
    {},
    h(
      "div",
      { class: "gl-card-head" },
      h("span", { class: "gl-card-token", text: tokenName(token) }),
      h("span", { class: "gl-quiet gl-number", text: t("position {position} · id {id}", { position, id: token.id }) }),
    ),
  );
  if (token.special) card.append(h("div", { class: "gl-card-title", text: t("special token: never coloured") }));
  else if (strongest?.length) {
    const rows = h("div", { class: "gl-card-rows" });
    for (const active of strongest)
      rows.append(
        h("span", { class: "gl-number", text: String(active.feature) }),
        bar("strength", active.shade),
        h("span", { class: "gl-number", text: strengthText(active.strength) }),
        h("span", { class: "gl-number gl-quiet", text: t("raw {raw}", { raw: rawText(active.raw) }) }),
      );
    card.append(h("div", { class: "gl-card-title", text: t("strongest features") }), rows);
  } else if (strongest) card.append(h("div", { class: "gl-card-title", text: t("no feature is on here") }));
  if (guesses?.length)
    card.append(h("div", { class: "gl-card-title", text: t("the model expects next") }), guessRows(guesses));
  return card;
}

export function guessRows(guesses: Guess[]): HTMLElement {
  const rows = h("div", { class: "gl-card-rows gl-guesses" });
  for (const [text, probability] of guesses)
    rows.append(
      h("span", {}, chip(text)),
      bar("probability", probability),
      h("span", { class: "gl-number gl-quiet", text: percentText(probability) }),
    );
  return rows;
}
