/** How often a feature fires how strongly: both axes logarithmic, with a line at its threshold and one at a text. */

import { rawText } from "../core/numbers";
import { t, tn } from "../core/words";
import { h } from "./dom";
import "./histogram.css";

export interface Marks {
  threshold: number | null;
  /** The largest activation in the user's own text. */
  text: number | null;
  /** The activation at the token under the pointer. */
  token: number | null;
}

export interface Histogram {
  el: HTMLElement;
  /** `edges` has one more number than `counts`. */
  show(counts: number[], edges: number[], interval: number): void;
  mark(marks: Marks): void;
}

const WIDTH = 460;
const HEIGHT = 128;
const LEFT = 34;
const RIGHT = 10;
const TOP = 22;
const BOTTOM = 24;
const SVG = "http://www.w3.org/2000/svg";

function svg(tag: string, attrs: Record<string, string | number>, text?: string): SVGElement {
  const el = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attrs)) el.setAttribute(name, String(value));
  if (text !== undefined) el.textContent = text;
  return el;
}

const short = (count: number) => (count >= 1000 ? `${count / 1000}k` : String(count));
const count = (value: number) => value.toLocaleString("en");

export function histogram(): Histogram {
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "gl-histogram-svg" });
  const bars = svg("g", {});
  const lines = svg("g", {});
  picture.append(bars, lines);
  const el = h("div", { class: "gl-histogram" });
  el.append(picture);
  let low = 1;
  let high = 10;
  let known = false;

  const x = (value: number) => {
    const place = (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low));
    return LEFT + Math.min(Math.max(place, 0), 1) * (WIDTH - LEFT - RIGHT);
  };
  const line = (value: number, name: string, kind: string) => {
    const at = x(value);
    const right = at > WIDTH * 0.6;
    lines.append(
      svg("line", { x1: at, x2: at, y1: kind === "token" ? TOP : 12, y2: HEIGHT - BOTTOM, class: `gl-mark-${kind}` }),
    );
    if (name)
      lines.append(
        svg(
          "text",
          {
            x: right ? at - 4 : at + 4,
            y: kind === "threshold" ? 20 : 9,
            "text-anchor": right ? "end" : "start",
            class: `gl-mark-name gl-mark-${kind}`,
          },
          name,
        ),
      );
  };

  return {
    el,
    show(counts, edges, interval) {
      known = counts.length > 0 && edges.length === counts.length + 1 && edges[0] > 0;
      el.hidden = !known;
      bars.replaceChildren();
      if (!known) return;
      low = edges[0];
      high = edges[edges.length - 1];
      const most = Math.max(...counts, 10);
      const y = (value: number) =>
        HEIGHT - BOTTOM - ((Math.log10(value) + 0.3) / (Math.log10(most) + 0.3)) * (HEIGHT - TOP - BOTTOM);
      for (let tick = 1; tick <= most; tick *= 10) {
        bars.append(
          svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick), class: "gl-histogram-grid" }),
          svg("text", { x: LEFT - 5, y: y(tick) + 3, "text-anchor": "end", class: "gl-histogram-tick" }, short(tick)),
        );
      }
      counts.forEach((value, i) => {
        if (value <= 0) return;
        const left = x(edges[i]);
        const bar = svg("rect", {
          x: left + 0.5,
          y: y(value),
          width: Math.max(x(edges[i + 1]) - left - 1, 1),
          height: Math.max(HEIGHT - BOTTOM - y(value), 0),
          rx: 1.5,
          class: "gl-histogram-bar",
        });
        const tokens = tn("{count} token", "{count} tokens", value, { count: count(value) });
        bar.append(
          svg(
            "title",
            {},
            t("{low} to {high}: {tokens}", { low: rawText(edges[i]), high: rawText(edges[i + 1]), tokens }),
          ),
        );
        bars.append(bar);
      });
      // Powers of ten would often give one label; the ends and the middle always give three.
      for (const [value, anchor] of [
        [low, "start"],
        [Math.sqrt(low * high), "middle"],
        [high, "end"],
      ] as const)
        bars.append(
          svg(
            "text",
            { x: x(value), y: HEIGHT - 8, "text-anchor": anchor, class: "gl-histogram-tick" },
            rawText(value),
          ),
        );
      const total = counts.reduce((sum, value) => sum + value, 0);
      picture.setAttribute(
        "aria-label",
        t("Histogram of {n} activations from {low} to {high}, maximum {maximum}", {
          n: count(total),
          low: rawText(low),
          high: rawText(high),
          maximum: rawText(interval),
        }),
      );
    },
    mark({ threshold, text, token }) {
      lines.replaceChildren();
      if (!known) return;
      // A feature is never on below its threshold, so the axis may begin there or above.
      if (threshold !== null && threshold > 0)
        line(threshold, t("threshold {value}", { value: rawText(threshold) }), "threshold");
      if (text !== null && text > 0) line(text, t("your text {value}", { value: rawText(text) }), "own");
      if (token !== null && token > 0) line(token, "", "token");
    },
  };
}
