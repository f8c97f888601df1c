/** Layers by tokens, one number in each cell, on a canvas; the last layer on top, as the stream flows upwards. */

import { opacity, type Rgb } from "../core/colour";
import { rawText, within } from "../core/numbers";
import { tokenName } from "../core/text";
import type { Token } from "../core/token";
import { t } from "../core/words";
import { h, on, onResize } from "./dom";
import { svg } from "./svg";
import "./layer-grid.css";

export interface GridRow {
  layer: number;
  /** A feature or a site. */
  name: string;
  /** Null for a layer whose site is not open, or that has no match. */
  values: Float32Array | null;
}

export interface GridContent {
  tokens: Token[];
  rows: GridRow[];
  /** What the full colour means; null: the largest value. */
  full: number | null;
  unit: string;
  log: boolean;
  hue: Rgb;
  selected: number;
  title: string;
}

export interface LayerGrid {
  el: HTMLElement;
  show(content: GridContent): void;
  picture(): SVGElement | null;
}

const LEFT = 62;
const ROW = 17;
const HEAD = 64;

export function layerGrid(onPick: (token: number) => void, signal: AbortSignal): LayerGrid {
  const canvas = h("canvas", { class: "gl-grid-canvas", attrs: { role: "img", tabindex: 0 } });
  const said = h("div", { class: "gl-grid-said gl-quiet gl-number", attrs: { "aria-live": "polite" } });
  const space = h("div", { class: "gl-grid-space" }, canvas);
  const el = h("div", { class: "gl-grid" }, space);
  const whole = h("div", {}, el, said);
  let shown: GridContent | null = null;
  let cell = 20;
  let row = 0;

  /** The least value above 0 and the largest, which has the full colour. */
  const ends = ({ rows, full }: GridContent): [low: number, top: number] => {
    let [low, high] = [Number.POSITIVE_INFINITY, 0];
    for (const { values } of rows)
      for (const value of values ?? [])
        if (Number.isFinite(value)) {
          high = Math.max(high, value);
          if (value > 0) low = Math.min(low, value);
        }
    return [low, full ?? high];
  };
  /** 0 to 1 of the full colour. */
  const scale = (content: GridContent): ((value: number) => number) => {
    const [low, top] = ends(content);
    if (!(top > 0)) return () => 0;
    if (!content.log || !(low < top)) return (value) => Math.min(value / top, 1);
    return (value) => (value > 0 ? Math.max(Math.log(value / low) / Math.log(top / low), 0.03) : 0);
  };
  /** What stands above the names of the rows: from which value to which the colours go. */
  const legend = (content: GridContent): string => {
    const [low, top] = ends(content);
    return top > 0 ? `${content.log ? rawText(low) : 0} ░▒▓ ${rawText(top)}` : "";
  };
  const draw = () => {
    if (!shown) return;
    const { tokens, rows, selected, hue } = shown;
    const ratio = globalThis.devicePixelRatio || 1;
    const room = el.clientWidth || 900;
    cell = within((room - LEFT - 8) / Math.max(tokens.length, 1), 7, 64);
    const width = Math.max(LEFT + cell * tokens.length + 8, room);
    const height = HEAD + ROW * rows.length;
    space.style.width = `${width}px`;
    space.style.height = `${height}px`;
    [canvas.width, canvas.height] = [Math.round(room * ratio), Math.round(height * ratio)];
    canvas.style.width = `${room}px`;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext?.("2d");
    if (!pen) return;
    const style = getComputedStyle(canvas);
    const from = el.scrollLeft;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, room, height);
    const shade = scale(shown);
    const first = Math.max(Math.floor(from / cell), 0);
    const last = Math.min(Math.ceil((from + room - LEFT) / cell), tokens.length - 1);
    pen.font = `10.5px ${style.fontFamily}`;
    for (let token = first; token <= last; token++) {
      const x = LEFT + token * cell - from;
      if (x < LEFT - cell) continue;
      pen.save();
      pen.beginPath();
      pen.rect(LEFT, 0, room, height);
      pen.clip();
      rows.forEach(({ values }, i) => {
        const y = HEAD + i * ROW;
        const value = values?.[token] ?? Number.NaN;
        const part = Number.isFinite(value) ? opacity(shade(value)) : 0;
        pen.fillStyle = part > 0 ? `rgb(${hue.join(" ")} / ${part.toFixed(3)})` : "rgb(128 136 150 / 7%)";
        if (values !== null) pen.fillRect(x + 0.5, y + 0.5, Math.max(cell - 1, 1), ROW - 1);
      });
      if (cell >= 10 || token === selected) {
        pen.fillStyle = style.color;
        pen.globalAlpha = token === selected ? 1 : 0.75;
        pen.translate(x + cell / 2 + 3, HEAD - 6);
        pen.rotate(-Math.PI / 3.2);
        const name = tokenName(tokens[token]).replace(/^␣(?=.)/u, "");
        pen.fillText(name.length > 11 ? `${name.slice(0, 10)}…` : name, 0, 0);
      }
      pen.restore();
    }
    pen.fillStyle = style.color;
    pen.fillText(legend(shown), 0, HEAD - 6, LEFT - 4);
    rows.forEach(({ name, values }, i) => {
      pen.globalAlpha = values === null ? 0.45 : 0.8;
      pen.fillText(values === null ? `${name} –` : name, 0, HEAD + i * ROW + 12, LEFT - 6);
    });
    pen.globalAlpha = 1;
    if (selected >= first && selected <= last) {
      const x = LEFT + selected * cell - from;
      pen.strokeStyle = style.color;
      pen.lineWidth = 1.25;
      if (x >= LEFT) pen.strokeRect(x, HEAD, cell, ROW * rows.length);
    }
  };
  const tell = (token: number, at: number) => {
    const one = shown?.rows[at];
    if (!shown || !one || !shown.tokens[token]) return;
    const value = one.values?.[token] ?? Number.NaN;
    const number =
      one.values === null ? t("not open, or without a match") : Number.isFinite(value) ? value.toPrecision(3) : "–";
    said.textContent = t("layer {layer} ({site}) at '{token}', position {position}: {value} {unit}", {
      layer: one.layer,
      site: one.name,
      token: tokenName(shown.tokens[token]),
      position: token,
      value: number,
      unit: Number.isFinite(value) ? shown.unit : "",
    });
  };
  const under = (event: PointerEvent | MouseEvent): [token: number, row: number] => {
    const box = canvas.getBoundingClientRect();
    return [
      Math.floor((event.clientX - box.left - LEFT + el.scrollLeft) / cell),
      Math.floor((event.clientY - box.top - HEAD) / ROW),
    ];
  };
  el.addEventListener("scroll", draw, { passive: true, signal });
  on(canvas, "pointermove", (event) => tell(...under(event)), signal);
  on(
    canvas,
    "click",
    (event) => {
      const [token, at] = under(event);
      if (!shown?.tokens[token]) return;
      row = within(at, 0, shown.rows.length - 1);
      onPick(token);
      tell(token, row);
    },
    signal,
  );
  on(
    canvas,
    "keydown",
    (event) => {
      if (!shown || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      row = within(row + (event.key === "ArrowDown" ? 1 : -1), 0, shown.rows.length - 1);
      tell(shown.selected, row);
    },
    signal,
  );
  onResize(el, draw, signal);

  return {
    el: whole,
    show(content) {
      const moved = shown?.selected !== content.selected;
      shown = content;
      canvas.setAttribute(
        "aria-label",
        t("{title}: {layers} layers by {tokens} tokens", {
          title: content.title,
          layers: content.rows.length,
          tokens: content.tokens.length,
        }),
      );
      draw();
      if (moved) tell(content.selected, Math.min(row, content.rows.length - 1));
    },
    picture() {
      if (!shown) return null;
      const { tokens, rows, hue } = shown;
      const side = Math.max(cell, 12);
      const shade = scale(shown);
      const size = { width: LEFT + side * tokens.length + 40, height: HEAD + ROW * rows.length };
      const made = svg("svg", { ...size, viewBox: `0 0 ${size.width} ${size.height}`, "font-size": 10.5 });
      made.append(svg("text", { x: 0, y: HEAD - 6 }, legend(shown)));
      rows.forEach(({ name, values }, i) => {
        const y = HEAD + i * ROW;
        made.append(svg("text", { x: 0, y: y + 12 }, values === null ? `${name} –` : name));
        values?.forEach((value, token) => {
          const part = Number.isFinite(value) ? opacity(shade(value)) : 0;
          const box = { x: LEFT + token * side + 0.5, y: y + 0.5, width: side - 1, height: ROW - 1 };
          if (part > 0)
            made.append(svg("rect", { ...box, fill: `rgb(${hue.join(",")})`, "fill-opacity": part.toFixed(3) }));
        });
      });
      tokens.forEach((token, i) => {
        const [x, y] = [LEFT + i * side + side / 2 + 3, HEAD - 6];
        const name = tokenName(token)
          .replace(/^␣(?=.)/u, "")
          .slice(0, 11);
        made.append(svg("text", { x, y, transform: `rotate(-56 ${x} ${y})` }, name));
      });
      return made;
    },
  };
}
