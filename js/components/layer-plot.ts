/** One token from layer to layer: features as blocks in three bands, joined where they are the same thing. */

import type { Edge } from "../core/attribution";
import { opacity } from "../core/colour";
import type { Block, Chain, Column, Evolution, Ribbon } from "../core/evolution";
import { type Frame, frame, type Layout, layout, neighbour, type Placed } from "../core/evolution-layout";
import { strengthText, within } from "../core/numbers";
import { fitted } from "../core/text";
import { t } from "../core/words";
import { freshId, on } from "./dom";
import { recycled, svg } from "./svg";
import "./layer-plot.css";

export interface PlotContent {
  evolution: Evolution;
  column: Column;
  kinds: string[];
  /** Features that stand out; null when all do. */
  followed: Set<string> | null;
  selected: string | null;
  /** What leads to the target, at this token; null while all features are shown. */
  edges: Map<string, Edge> | null;
  /** The feature they lead to; null for a next token. */
  target: string | null;
  name(feature: string): string;
  /** Whether someone gave a feature its name, rather than a count. */
  given(feature: string): boolean;
  label(block: Block): string;
  /** Pixels that are there. */
  width: number;
}

export type Hovered = { block: Block; anchor: Element } | { ribbon: Ribbon; anchor: Element } | null;

export interface LayerPlot {
  el: SVGElement;
  /** What it was drawn in, for what stands below. */
  readonly frame: Frame | null;
  show(content: PlotContent): void;
  focus(feature?: string): void;
}

export interface LayerPlotCallbacks {
  onHover(what: Hovered): void;
  onSelect(block: Block): void;
  /** A double click: its card. */
  onOpen(block: Block): void;
  signal: AbortSignal;
}

/** Letters of this size take about so many pixels each. */
const LETTER = 5.6;
/** More lines than this to one place cannot be told apart. */
const MOST_EDGES = 12;

export function layerPlot({ onHover, onSelect, onOpen, signal }: LayerPlotCallbacks): LayerPlot {
  const back = svg("g", { "aria-hidden": "true" });
  const ribbons = svg("g", { "aria-hidden": "true" });
  const lines = svg("g", { "aria-hidden": "true" });
  const blocks = svg("g", { role: "listbox", "aria-label": t("Features by layer"), "aria-orientation": "horizontal" });
  const names = svg("g", { "aria-hidden": "true", class: "gl-river-names" });
  const el = svg("svg", { class: "gl-plot", role: "group", "aria-label": t("Features from layer to layer") });
  el.append(back, ribbons, blocks, lines, names);
  const id = freshId("river");
  const blockShapes = recycled(blocks, "rect");
  const ribbonShapes = recycled(ribbons, "path");
  let shown: PlotContent | null = null;
  let placed: Layout | null = null;
  let framed: { frame: Frame; of: Evolution; key: string } | null = null;
  let drawn = "";
  let current: string | null = null;
  let shapes = new Map<string, { shape: SVGElement; place: Placed }>();
  let joins = new Map<SVGElement, Ribbon>();

  const frameOf = ({ evolution, kinds, width }: PlotContent): Frame => {
    const key = `${kinds.join()} ${Math.round(width)}`;
    if (framed?.of !== evolution) drawn = "";
    if (framed?.of !== evolution || framed.key !== key)
      framed = { of: evolution, key, frame: frame(evolution, kinds, width) };
    return framed.frame;
  };
  const drawBack = ({ frame: { first, last, left, cell, width, bands, height } }: Layout, gaps: Layout["gaps"]) => {
    const parts: SVGElement[] = [];
    for (let layer = first; layer <= last; layer++) {
      const x = left + (layer - first) * cell + cell / 2;
      parts.push(svg("text", { x, y: 12, class: "gl-plot-layer", "text-anchor": "middle" }, String(layer)));
      parts.push(svg("line", { x1: x, x2: x, y1: 18, y2: height - 12, class: "gl-plot-line" }));
    }
    parts.push(svg("text", { x: 0, y: 12, class: "gl-plot-title" }, t("layer")));
    for (const band of bands) {
      parts.push(svg("line", { x1: 0, x2: width, y1: band.y - 7, y2: band.y - 7, class: "gl-plot-rule" }));
      parts.push(svg("text", { x: 0, y: band.y + 9, class: "gl-plot-band", "data-kind": band.kind }, band.title));
    }
    for (const gap of gaps) {
      const box = { x: gap.x, y: gap.y, width: gap.width, height: gap.height, rx: 5 };
      const [x, y] = [gap.x + gap.width / 2, gap.y + gap.height / 2];
      const turn = `rotate(-90 ${x} ${y})`;
      parts.push(
        svg("rect", { ...box, class: "gl-plot-gap" }, svg("title", {}, t("{site} is not open", { site: gap.site }))),
      );
      parts.push(
        svg(
          "text",
          { x, y: y + 3.5, transform: turn, "text-anchor": "middle", class: "gl-plot-gap-text" },
          t("not open"),
        ),
      );
    }
    back.replaceChildren(...parts);
  };
  const dimmed = (feature: string) => {
    if (!shown) return false;
    if (shown.edges && !shown.edges.has(feature)) return true;
    return shown.followed !== null && !shown.followed.has(feature);
  };
  const drawBlocks = (content: PlotContent, found: Layout) => {
    shapes = new Map();
    const rows = found.blocks.map((place) => {
      const { block } = place;
      const edge = content.edges?.get(block.name);
      return {
        x: place.x.toFixed(1),
        y: place.y.toFixed(1),
        width: place.width.toFixed(1),
        height: place.height.toFixed(1),
        rx: Math.min(place.height / 2, 3.5),
        class: "gl-block",
        role: "option",
        tabindex: -1,
        "data-feature": block.name,
        "data-kind": block.kind,
        "data-unknown": Number.isNaN(block.strength) ? "" : undefined,
        "data-sign": edge ? (edge.effect < 0 ? "lowers" : "raises") : undefined,
        "data-dim": dimmed(block.name) ? "" : undefined,
        "aria-selected": String(block.name === content.selected),
        "aria-label": content.label(block),
        "fill-opacity": (0.12 + 0.88 * opacity(block.shade)).toFixed(3),
      };
    });
    blockShapes(rows).forEach((shape, i) => {
      const place = found.blocks[i];
      shapes.set(place.block.name, { shape, place });
    });
    const focusable = shapes.get(current ?? "") ?? shapes.get(content.selected ?? "") ?? shapes.values().next().value;
    if (focusable) {
      for (const { shape } of shapes.values())
        if (shape.getAttribute("tabindex") !== "-1") shape.setAttribute("tabindex", "-1");
      focusable.shape.setAttribute("tabindex", "0");
      current = focusable.place.block.name;
    }
  };
  const drawRibbons = (found: Layout) => {
    joins = new Map();
    const rows = found.ribbons.map(({ ribbon, path }) => {
      const dim = dimmed(ribbon.source.name) || dimmed(ribbon.target.name);
      return {
        d: path,
        class: "gl-ribbon",
        "data-kind": ribbon.source.kind,
        "data-dim": dim ? "" : undefined,
        "fill-opacity": (0.08 + 0.34 * within(ribbon.cosine, 0, 1)).toFixed(3),
      };
    });
    ribbonShapes(rows).forEach((shape, i) => {
      joins.set(shape, found.ribbons[i].ribbon);
    });
  };
  /** From the strongest sources to what they lead to: a block, or the next token below the last layer. */
  const drawEdges = ({ edges, target }: PlotContent, { frame: { first, last, left, cell, height } }: Layout) => {
    const end = target === null ? undefined : shapes.get(target)?.place;
    const [x2, y2] = end ? [end.x, end.y + end.height / 2] : [left + (last - first + 0.5) * cell, height - 1];
    const strongest = [...(edges?.values() ?? [])].slice(0, MOST_EDGES);
    const most = Math.max(...strongest.map(({ effect }) => Math.abs(effect)), 1e-9);
    const parts = strongest.flatMap((edge) => {
      const from = shapes.get(edge.feature)?.place;
      if (!from || edge.feature === target || (target !== null && !end)) return [];
      const [x1, y1] = [from.x + from.width, from.y + from.height / 2];
      const bend = Math.max((x2 - x1) / 2, 14);
      const arrives = end ? `${x2 - bend} ${y2}` : `${x2 + cell / 4} ${y2 - 70}`;
      const leaves = end ? x1 + bend : Math.min(x1 + bend, x2 + cell / 2);
      const path = `M${x1} ${y1}C${leaves} ${y1} ${arrives} ${x2} ${y2}`;
      const wide = (0.5 + 2.5 * (Math.abs(edge.effect) / most)).toFixed(2);
      const sign = edge.effect < 0 ? "lowers" : "raises";
      return [svg("path", { d: path, class: "gl-edge", "data-sign": sign, "stroke-width": wide })];
    });
    lines.replaceChildren(...parts);
  };
  const drawNames = (content: PlotContent, found: Layout) => {
    const parts: SVGElement[] = [];
    found.rivers.forEach((river, i) => {
      const name = content.name(nameBearer(river.chain, content));
      const room = Math.floor(river.length / LETTER);
      if (
        !name ||
        river.height < 8.5 ||
        room < 5 ||
        river.chain.blocks.slice(0, 2).every((block) => dimmed(block.name))
      )
        return;
      const text = fitted(name, room);
      const path = `${id}-${i}`;
      const along = svg("textPath", { href: `#${path}` }, text);
      parts.push(svg("path", { id: path, d: river.path, fill: "none" }), svg("text", { dy: "0.34em" }, along));
    });
    // A chain of one layer has no river, but a wide block has room for a name.
    for (const { block, x, y, width, height } of found.blocks) {
      const lonely = content.column.chainOf.get(block.name)?.blocks.length === 1;
      const room = Math.floor((width - 8) / LETTER);
      const name = lonely && height >= 11 && room >= 12 && !dimmed(block.name) ? content.name(block.name) : "";
      if (!name) continue;
      const text = fitted(name, room);
      parts.push(svg("text", { x: x + 5, y: y + height / 2, dy: "0.34em" }, text));
    }
    names.replaceChildren(...parts);
  };
  const blockOf = (target: EventTarget | null): { shape: SVGElement; place: Placed } | undefined => {
    const name = target instanceof Element ? target.getAttribute("data-feature") : null;
    return name === null ? undefined : shapes.get(name);
  };
  const setCurrent = (name: string) => {
    shapes.get(current ?? "")?.shape.setAttribute("tabindex", "-1");
    current = name;
    shapes.get(name)?.shape.setAttribute("tabindex", "0");
  };
  /** What belongs to the block under the pointer stands out a little, without a new drawing. */
  const light = (chain: Chain | null) => {
    const names = new Set(chain && chain.blocks.length > 1 ? chain.blocks.map((block) => block.name) : []);
    el.toggleAttribute("data-lit", names.size > 0);
    for (const [name, { shape }] of shapes) shape.toggleAttribute("data-near", names.has(name));
    for (const [shape, ribbon] of joins) shape.toggleAttribute("data-near", names.has(ribbon.source.name));
  };
  const over = (target: EventTarget | null) => {
    const found = blockOf(target);
    const ribbon = target instanceof SVGElement ? joins.get(target) : undefined;
    const name = found?.place.block.name ?? ribbon?.source.name;
    light(name === undefined ? null : (shown?.column.chainOf.get(name) ?? null));
    if (found) onHover({ block: found.place.block, anchor: found.shape });
    else onHover(ribbon && target instanceof Element ? { ribbon, anchor: target } : null);
  };

  on(el, "pointerover", (event) => over(event.target), signal);
  on(el, "pointerleave", () => over(null), signal);
  on(
    el,
    "focusin",
    (event) => {
      const found = blockOf(event.target);
      if (!found) return;
      setCurrent(found.place.block.name);
      if (found.shape.matches(":focus-visible")) over(event.target);
    },
    signal,
  );
  on(el, "focusout", () => over(null), signal);
  on(
    el,
    "click",
    (event) => {
      const found = blockOf(event.target);
      const ribbon = event.target instanceof SVGElement ? joins.get(event.target) : undefined;
      const block = found?.place.block ?? ribbon?.source;
      if (block) {
        setCurrent(block.name);
        onSelect(block);
      }
    },
    signal,
  );
  on(
    el,
    "dblclick",
    (event) => {
      const block = blockOf(event.target)?.place.block;
      if (block) onOpen(block);
    },
    signal,
  );
  on(
    el,
    "keydown",
    (event) => {
      const found = blockOf(event.target);
      if (!found || !shown || !placed || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
      const { block } = found.place;
      if (event.key === "Enter" || event.key === " ") onSelect(block);
      else {
        const next = neighbour(placed, shown.column, block.name, event.key);
        if (!next && !event.key.startsWith("Arrow")) return;
        if (next) focus(next.name);
      }
      event.preventDefault();
      event.stopPropagation();
    },
    signal,
  );

  function focus(feature = current ?? ""): void {
    const shape = shapes.get(feature)?.shape;
    shape?.focus();
    shape?.scrollIntoView?.({ block: "nearest", inline: "nearest" });
  }

  return {
    el,
    get frame() {
      return framed?.frame ?? null;
    },
    show(content) {
      const inside = shapes.get(current ?? "")?.shape.matches(":focus") === true;
      if (el.hasAttribute("data-lit")) light(null);
      shown = content;
      placed = layout(content.evolution, content.column, frameOf(content));
      const { width, height } = placed.frame;
      el.setAttribute("viewBox", `0 0 ${width.toFixed(1)} ${height.toFixed(1)}`);
      el.setAttribute("width", width.toFixed(1));
      el.setAttribute("height", height.toFixed(1));
      const behind = `${framed?.key} ${placed.frame.bands.map(({ y }) => y)} ${height}`;
      if (behind !== drawn) drawBack(placed, placed.gaps);
      drawn = behind;
      drawRibbons(placed);
      drawBlocks(content, placed);
      drawEdges(content, placed);
      drawNames(content, placed);
      // The keyboard's place is kept where the feature is on at the next token too.
      if (inside) focus();
    },
    focus,
  };
}

/** The block that gives a chain its name: the strongest that has a name someone gave, else the strongest. */
function nameBearer(chain: Chain, content: PlotContent): string {
  const best = [...chain.blocks].sort((a, b) => b.shade - a.shade);
  const named = best.find((block) => content.given(block.name));
  return (named ?? best[0]).name;
}

/** A block as a screen reader says it. */
export function spokenBlock(block: Block, column: Column, name: string): string {
  const chain = column.chainOf.get(block.name);
  const at = chain?.blocks.indexOf(block) ?? -1;
  const before = chain?.blocks[at - 1];
  const after = chain?.blocks[at + 1];
  const strength = Number.isNaN(block.strength)
    ? t("strength unknown")
    : t("strength {strength}", { strength: strengthText(block.strength) });
  return [
    block.name,
    name,
    strength,
    before ? t("continues {feature}", { feature: before.name }) : "",
    after ? t("goes on as {feature}", { feature: after.name }) : "",
  ]
    .filter(Boolean)
    .join(", ");
}
