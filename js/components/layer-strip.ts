/** Below the bands, per layer: what the model would say there, how sure it is, and how the sites look as a whole. */

import type { Evolution, Measures } from "../core/evolution";
import type { Frame } from "../core/evolution-layout";
import { within } from "../core/numbers";
import { visibleText } from "../core/text";
import { mark, t } from "../core/words";
import { on } from "./dom";
import { svg } from "./svg";

export interface StripContent {
  evolution: Evolution;
  token: number;
  kinds: string[];
  frame: Frame;
  /** The next token that was chosen, if any. */
  target: number | null;
}

export interface LayerStrip {
  el: SVGElement;
  show(content: StripContent): void;
}

type Row = [title: string, of: (one: Measures) => number, log: boolean];

const ROWS: Row[] = [
  ["L0", (one) => one.l0, false],
  [mark("norm"), (one) => one.norm, true],
  ["FVU", (one) => one.fvu, false],
];
const HIGH = 26;
const APART = 9;
const GUESS = 24;

export function layerStrip(
  onHover: (layer: number | null, anchor: Element | null) => void,
  signal: AbortSignal,
): LayerStrip {
  // As a slider of layers it is walked by keyboard; what stands at a layer is shown as under the pointer.
  const el = svg("svg", { class: "gl-strips", role: "slider", tabindex: 0, "aria-orientation": "horizontal" });
  let current = Number.NaN;
  let ends: [first: number, last: number] = [0, 0];
  let spoken = (_layer: number) => "";
  const columnOf = (layer: number) => el.querySelector(`[data-layer="${layer}"]`);
  const stand = (layer: number) => {
    columnOf(current)?.classList.remove("gl-layer-at");
    current = within(layer, ends[0], ends[1]);
    el.setAttribute("aria-valuenow", String(current));
    el.setAttribute("aria-valuetext", spoken(current));
    if (!el.matches(":focus-visible")) return;
    columnOf(current)?.classList.add("gl-layer-at");
    onHover(current, columnOf(current));
  };
  const over = (target: EventTarget | null) => {
    const at = target instanceof Element ? target.closest("[data-layer]") : null;
    onHover(at === null ? null : Number(at.getAttribute("data-layer")), at);
  };
  on(el, "pointerover", (event) => over(event.target), signal);
  on(el, "pointerleave", () => over(null), signal);
  on(el, "focus", () => stand(current), signal);
  on(
    el,
    "blur",
    () => {
      columnOf(current)?.classList.remove("gl-layer-at");
      over(null);
    },
    signal,
  );
  on(
    el,
    "keydown",
    (event) => {
      const { key } = event;
      const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: ends[0], End: ends[1] }[key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      stand(to);
    },
    signal,
  );

  return {
    el,
    show({ evolution, token, kinds, frame, target }) {
      const { first, last, left, cell, width } = frame;
      const xOf = (layer: number) => left + (layer - first) * cell + cell / 2;
      const inside = (layer: number) => layer >= first && layer <= last;
      const guesses = evolution.guesses(token).filter(({ layer }) => inside(layer));
      const parts: SVGElement[] = [];
      let y = 4;
      const title = (text: string, at: number) =>
        parts.push(svg("text", { x: 0, y: at, class: "gl-strip-title" }, text));
      if (guesses.length) {
        title(t("guess"), y + 13);
        const letters = Math.max(Math.floor((cell - 6) / 5.9), 2);
        for (const { layer, tokens } of guesses) {
          const [best] = tokens;
          if (!best) continue;
          const text = visibleText(best.text).replace(/^␣/, "");
          const chosen = tokens.find(({ id }) => id === target);
          parts.push(
            svg(
              "g",
              { class: "gl-guess-at" },
              svg("rect", {
                x: xOf(layer) - cell / 2 + 1.5,
                y,
                width: cell - 3,
                height: GUESS - 6,
                rx: 5,
                class: chosen ? "gl-guess gl-guess-chosen" : "gl-guess",
                "fill-opacity": (0.04 + 0.5 * (chosen?.probability ?? best.probability)).toFixed(3),
              }),
              svg(
                "text",
                { x: xOf(layer), y: y + 12.8, "text-anchor": "middle", direction: "ltr" },
                text.length > letters ? `${[...text].slice(0, letters - 1).join("")}…` : text,
              ),
            ),
          );
        }
        y += GUESS;
        title(t("entropy"), y + HIGH / 2 + 3);
        const most = Math.max(...guesses.map(({ entropy }) => entropy), 1);
        parts.push(
          svg("text", { x: left - 4, y: y + 8, "text-anchor": "end", class: "gl-strip-number" }, most.toFixed(1)),
        );
        for (const { layer, entropy } of guesses) {
          const high = Math.max((entropy / most) * HIGH, 0.5);
          parts.push(
            svg("rect", {
              x: xOf(layer) - cell * 0.27,
              y: y + HIGH - high,
              width: cell * 0.54,
              height: high,
              rx: 1.5,
              class: "gl-entropy",
            }),
          );
        }
        y += HIGH + APART;
      }
      for (const [name, of, log] of ROWS) {
        const lines = kinds.map((kind) => ({
          kind,
          points: evolution.sites.flatMap((site, i) =>
            site.kind === kind ? [{ layer: site.layer, value: of(evolution.measures(token, i)) }] : [],
          ),
        }));
        const known = lines.flatMap(({ points }) => points.map(({ value }) => value)).filter((value) => value >= 0);
        if (!known.length) continue;
        const scaled = (value: number) => (log ? Math.log(Math.max(value, 1e-6)) : value);
        const high = Math.max(...known);
        const low = log ? Math.min(...known.filter((value) => value > 0)) : 0;
        const reach = Math.max(scaled(high) - scaled(low), 1e-6);
        const yOf = (value: number) => y + HIGH - 2 - ((scaled(value) - scaled(low)) / reach) * (HIGH - 4);
        title(t(name), y + HIGH / 2 + 3);
        parts.push(
          svg("line", { x1: left, x2: width - 10, y1: y + HIGH, y2: y + HIGH, class: "gl-plot-rule" }),
          svg("text", { x: left - 4, y: y + 8, "text-anchor": "end", class: "gl-strip-number" }, short(high)),
        );
        for (const { kind, points } of lines) {
          let path = "";
          let dots = "";
          let before: number | null = null;
          for (const { layer, value } of points) {
            // What is not known, and what is not open, is a gap.
            const joined = before !== null && layer === before + 1;
            const place = `${xOf(layer).toFixed(1)} ${yOf(value).toFixed(1)}`;
            if (value >= 0) {
              path += `${joined ? "L" : "M"}${place}`;
              dots += `M${place}h0`;
            }
            before = value >= 0 ? layer : null;
          }
          // One path for all dots: scrubbing makes every element of this anew.
          parts.push(svg("path", { d: path, class: "gl-strip-line", "data-kind": kind }));
          parts.push(svg("path", { d: dots, class: "gl-strip-line gl-strip-dots", "data-kind": kind }));
        }
        y += HIGH + APART;
      }
      for (let layer = first; layer <= last; layer++)
        parts.push(
          svg("rect", {
            "data-layer": layer,
            x: xOf(layer) - cell / 2,
            y: 0,
            width: cell,
            height: y,
            fill: "transparent",
          }),
        );
      el.replaceChildren(...parts);
      ends = [first, last];
      el.setAttribute("aria-valuemin", String(first));
      el.setAttribute("aria-valuemax", String(last));
      spoken = (layer) => {
        const guess = guesses.find((one) => one.layer === layer);
        const [best] = guess?.tokens ?? [];
        if (!guess || !best) return t("layer {n}", { n: layer });
        return t("layer {n}: guess '{token}', entropy {value} nats", {
          n: layer,
          token: best.text,
          value: guess.entropy.toFixed(2),
        });
      };
      stand(Number.isNaN(current) ? last : current);
      el.setAttribute("viewBox", `0 0 ${width.toFixed(1)} ${y}`);
      el.setAttribute("width", width.toFixed(1));
      el.setAttribute("height", String(y));
      const end = guesses.at(-1);
      el.setAttribute(
        "aria-label",
        end
          ? t("Per layer: L0, norm and FVU, and guesses of the next token; the last layer's is '{token}'", {
              token: end.tokens[0]?.text ?? "",
            })
          : t("Per layer: L0, norm and FVU"),
      );
    },
  };
}

function short(value: number): string {
  if (value >= 10_000) return `${(value / 1000).toFixed(0)}k`;
  return value >= 10 ? value.toFixed(0) : value.toFixed(2);
}
