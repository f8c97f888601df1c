/** One feature at several strengths with one seed: a row each. */

import { asToken, type Band, type Dose, type DoseRow, type NewToken } from "../core/desk";
import { percentText, strengthText } from "../core/numbers";
import { tokenName } from "../core/text";
import { mark, t } from "../core/words";
import { h } from "./dom";
import "./dose-strip.css";

const WORDS: Record<Band, string> = { none: mark("no effect"), works: mark("works"), breaks: mark("breaks") };

export interface DoseStrip {
  el: HTMLElement;
  show(dose: Dose | null, name: string): void;
}

/** `onPick` gets the strength of a row that is chosen. */
export function doseStrip(onPick: (strength: number) => void, signal: AbortSignal): DoseStrip {
  const head = h("div", { class: "gl-quiet gl-dose-head", attrs: { role: "status" } });
  const body = h("tbody");
  const safety = h("th", { text: t("safety"), attrs: { scope: "col" } });
  const table = h(
    "table",
    { class: "gl-dose" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", { text: t("strength"), attrs: { scope: "col", title: t("as on the slider") } }),
        h("th", { text: t("band"), attrs: { scope: "col" } }),
        h("th", {
          text: "KL",
          attrs: { scope: "col", title: t("how far the predictions are from the default ones, nats per token") },
        }),
        h("th", {
          text: t("surprise"),
          attrs: {
            scope: "col",
            title: t("how unlikely the text is without this edit, nats per token: text that falls apart is"),
          },
        }),
        h("th", { text: t("repeats"), attrs: { scope: "col", title: t("share of repeated runs of four tokens") } }),
        safety,
        h("th", { text: t("text"), attrs: { scope: "col" } }),
      ),
    ),
    body,
  );
  const el = h("div", { class: "gl-dose-box" }, head, table);
  body.addEventListener(
    "click",
    (event) => {
      const button = event.target instanceof Element ? event.target.closest("button") : null;
      if (button?.dataset.strength) onPick(Number(button.dataset.strength));
    },
    { signal },
  );
  return {
    el,
    show(dose, name) {
      table.hidden = !dose?.rows.length;
      if (!dose) {
        head.textContent = "";
        return;
      }
      head.textContent =
        dose.error ??
        {
          running: t("{name}: running", { name }),
          finished: t("{name}; the other edits as they are, one seed for all rows", { name }),
          stopped: t("{name}: stopped", { name }),
          failed: t("{name}: failed", { name }),
        }[dose.state];
      const scored = dose.rows.some((row) => row.safety !== null);
      safety.hidden = !scored;
      body.replaceChildren(
        ...(dose.default ? [drawDefault(dose, dose.default, scored)] : []),
        ...dose.rows.map((row) => drawRow(row, scored)),
      );
    },
  };
}

function figures(kl: number | null, surprise: number | null, repetition: number | null): HTMLElement[] {
  return [kl?.toFixed(2), surprise?.toFixed(2), repetition === null ? undefined : percentText(repetition)].map((text) =>
    h("td", { class: "gl-number", text: text ?? "?" }),
  );
}

function drawDefault(dose: Dose, tokens: NewToken[], scored: boolean): HTMLElement {
  return h(
    "tr",
    { class: "gl-quiet" },
    h("th", { attrs: { scope: "row", colspan: 2 }, text: t("without this edit") }),
    ...figures(0, dose.surprise ?? null, dose.repetition ?? null),
    ...(scored ? [h("td")] : []),
    drawText(tokens, null),
  );
}

function drawText(tokens: NewToken[], diverges: number | null): HTMLElement {
  const text = h("td", { class: "gl-dose-text", attrs: { dir: "auto" } });
  tokens.forEach((token, i) => {
    const span = h("span", {
      class: i === diverges ? "gl-diverges" : diverges !== null && i < diverges ? "gl-quiet" : "",
      text: token.text.includes("\n") || token.text === "" ? tokenName(asToken(token)) : token.text,
    });
    if (i === diverges) span.title = t("the first token that differs from the default text");
    text.append(span);
  });
  return text;
}

function drawRow(row: DoseRow, scored: boolean): HTMLElement {
  return h(
    "tr",
    {},
    h(
      "th",
      { attrs: { scope: "row" } },
      h("button", {
        class: "gl-number",
        text: strengthText(row.strength).replace("-", "−"),
        attrs: { type: "button", "data-strength": row.strength, title: t("Set the slider to this strength") },
      }),
    ),
    h(
      "td",
      { class: "gl-dose-band" },
      h("span", { class: `gl-dot gl-band-${row.band}`, attrs: { "aria-hidden": "true" } }),
      row.band === "none" && row.diverges !== null ? t("hardly any") : t(WORDS[row.band] ?? "?"),
    ),
    ...figures(row.kl, row.surprise, row.repetition),
    ...(scored ? [h("td", { class: "gl-number", text: row.safety === null ? "?" : row.safety.toFixed(2) })] : []),
    drawText(row.tokens, row.diverges),
  );
}
