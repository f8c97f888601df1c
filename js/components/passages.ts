/** Passages in which a feature fires, each coloured by it on one scale. */

import type { Example, Examples } from "../core/card";
import { opacity } from "../core/colour";
import { rawText, strengthText } from "../core/numbers";
import { visiblePieces, visibleText } from "../core/text";
import { t } from "../core/words";
import { h } from "./dom";
import { fillPieces } from "./text";
import "./passages.css";

/** With more tokens than this on each side, lines break instead of being cut. */
const ALIGNED = 10;

export interface PassagesOptions {
  /** Asks for an example's whole passage. */
  whole(example: Example): Promise<Example>;
  onError(error: unknown): void;
  live: boolean;
  signal: AbortSignal;
}

export interface Passages {
  el: HTMLElement;
  /** `maximum` is strength 1. */
  show(examples: Examples, maximum: number, by: "strongest" | "interval"): void;
}

export function passages({ whole, onError, live, signal }: PassagesOptions): Passages {
  const el = h("div", { class: "gl-passages", attrs: { role: "list", "aria-label": t("Examples") } });
  let shown: Example[] = [];
  let maximum = 1;
  let wrapped = false;
  /** Examples that are open as their whole passage, by document and position. */
  let open = new Map<string, Example>();
  let current = "";
  const keyOf = (example: Example) => `${example.document}/${example.position}`;

  const line = (example: Example): HTMLElement => {
    const key = keyOf(example);
    const full = open.get(key);
    const strength = example.value / maximum;
    const body = full || wrapped ? flowing(full ?? example, maximum) : aligned(example, maximum);
    const row = h(
      "div",
      {
        class: full ? "gl-passage gl-passage-open" : "gl-passage",
        attrs: {
          role: "listitem",
          "data-key": key,
          tabindex: key === current ? 0 : -1,
          title: live ? (full ? t("Click for the part around it") : t("Click for the whole passage")) : undefined,
          "aria-expanded": live ? String(full !== undefined) : undefined,
          "aria-label": t("{text} strength {strength}", {
            text: visibleText(example.tokens.join("")),
            strength: strengthText(strength),
          }),
        },
      },
      h("div", {
        class: "gl-passage-value gl-number",
        text: strengthText(strength),
        attrs: { title: t("raw {raw}", { raw: rawText(example.value) }) },
      }),
      body,
    );
    return row;
  };
  const rows = () => [...el.querySelectorAll<HTMLElement>(".gl-passage")];
  const rowOf = (target: EventTarget | null) =>
    target instanceof Element ? target.closest<HTMLElement>(".gl-passage") : null;
  const exampleOf = (row: HTMLElement) => shown.find((example) => keyOf(example) === row.dataset.key);
  const redraw = (row: HTMLElement, example: Example) => {
    const focused = row.matches(":focus");
    const fresh = line(example);
    row.replaceWith(fresh);
    if (focused) fresh.focus({ preventScroll: true });
  };
  const toggle = async (row: HTMLElement) => {
    const example = exampleOf(row);
    if (!example || !live) return;
    const key = keyOf(example);
    if (open.delete(key)) return redraw(row, example);
    row.setAttribute("aria-busy", "true");
    try {
      const full = await whole(example);
      // The list may have been drawn again meanwhile, with the same example in another row.
      const here = rows().find((one) => one.dataset.key === key);
      if (signal.aborted || !here) return;
      open.set(key, full);
      onError(null);
      redraw(here, example);
    } catch (error) {
      onError(error);
    } finally {
      row.removeAttribute("aria-busy");
    }
  };
  const focus = (place: number) => {
    const all = rows();
    const row = all[Math.min(Math.max(place, 0), all.length - 1)];
    if (!row) return;
    current = row.dataset.key ?? "";
    for (const one of all) one.tabIndex = one === row ? 0 : -1;
    row.focus({ preventScroll: true });
    row.scrollIntoView?.({ block: "nearest" });
  };

  el.addEventListener(
    "click",
    (event) => {
      const row = rowOf(event.target);
      // The end of a drag that marks text is no click.
      if (!row || !(document.getSelection()?.isCollapsed ?? true)) return;
      current = row.dataset.key ?? "";
      toggle(row);
    },
    { signal },
  );
  el.addEventListener(
    "keydown",
    (event) => {
      const row = rowOf(event.target);
      if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
      const here = rows().indexOf(row);
      const moves: Record<string, number> = {
        ArrowDown: here + 1,
        ArrowUp: here - 1,
        Home: 0,
        End: rows().length - 1,
      };
      if (Object.hasOwn(moves, event.key)) focus(moves[event.key]);
      else if (event.key === "Enter" || event.key === " ") toggle(row);
      else return;
      event.preventDefault();
      event.stopPropagation();
    },
    { signal },
  );

  return {
    el,
    show(examples, most, by) {
      maximum = most > 0 ? most : 1;
      wrapped = examples.context === null || examples.context > ALIGNED;
      const groups: [string, Example[]][] =
        by === "strongest"
          ? [["", examples.top]]
          : [...examples.intervals]
              .reverse()
              .map((one) => [t("{low} to {high}", { low: rawText(one.low), high: rawText(one.high) }), one.examples]);
      const focused = el.querySelector<HTMLElement>(".gl-passage:focus")?.dataset.key;
      shown = groups.flatMap(([, some]) => some);
      open = new Map([...open].filter(([key]) => shown.some((example) => keyOf(example) === key)));
      if (!shown.some((example) => keyOf(example) === current)) current = shown.length ? keyOf(shown[0]) : "";
      el.replaceChildren(
        ...groups.flatMap(([title, some]) => [
          ...(title
            ? [
                h("div", {
                  class: "gl-passage-group",
                  text: some.length ? title : t("{title}: none", { title }),
                  attrs: { role: "presentation" },
                }),
              ]
            : []),
          ...some.map(line),
        ]),
      );
      if (focused !== undefined)
        rows()
          .find((row) => row.dataset.key === focused)
          ?.focus({ preventScroll: true });
    },
  };
}

/** The peaks of all rows below each other, as in a concordance: what does not fit is cut at the ends. */
function aligned(example: Example, maximum: number): HTMLElement {
  const all = spans(example, maximum);
  return h(
    "div",
    { class: "gl-passage-text gl-passage-aligned", attrs: { dir: "auto" } },
    h("div", { class: "gl-passage-left" }, h("span", {}, ...all.slice(0, example.peak))),
    h("div", { class: "gl-passage-right" }, ...all.slice(example.peak)),
  );
}

function flowing(example: Example, maximum: number): HTMLElement {
  return h("div", { class: "gl-passage-text", attrs: { dir: "auto" } }, ...spans(example, maximum));
}

function spans(example: Example, maximum: number): (Node | string)[] {
  return example.tokens.map((text, i) => {
    const value = example.acts[i] ?? 0;
    const span = h("span", { class: i === example.peak ? "gl-said gl-said-peak" : "gl-said" });
    if (value > 0) {
      span.style.setProperty("--gl-shade", opacity(value / maximum).toFixed(3));
      span.title = t("{strength}, raw {raw}", { strength: strengthText(value / maximum), raw: rawText(value) });
    }
    if (example.known && (i < example.known[0] || i >= example.known[1])) span.classList.add("gl-said-unknown");
    fillPieces(span, inline(text));
    return span;
  });
}

/** Text as it stands in a line: spaces stay spaces. */
function inline(text: string) {
  return visiblePieces(text, false).map((piece) =>
    piece.kind === "mark" && /^␣+$/.test(piece.text)
      ? { kind: "text" as const, text: " ".repeat(piece.text.length) }
      : piece,
  );
}
