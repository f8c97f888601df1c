/** Where everything of one token's picture stands. Lengths in pixels. */

import { BANDS, type Block, type Chain, type Column, type Evolution, type Ribbon, weightOf } from "./evolution";
import { within } from "./numbers";
import { t } from "./words";

export interface Placed {
  block: Block;
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface PlacedRibbon {
  ribbon: Ribbon;
  /** SVG path of the area. */
  path: string;
}

/** A line along the middle of a chain, for its name to stand on. */
export interface River {
  chain: Chain;
  path: string;
  length: number;
  /** Height of its lowest block. */
  height: number;
}

export interface Band {
  kind: string;
  title: string;
  y: number;
  height: number;
}

export interface Gap {
  site: string;
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Frame {
  /** Left end of each layer's cell, and how wide a cell is. */
  first: number;
  last: number;
  left: number;
  cell: number;
  width: number;
  bands: Band[];
  height: number;
  /** Height of a block at its own maximum. */
  unit: number;
}

export interface Layout {
  frame: Frame;
  blocks: Placed[];
  ribbons: PlacedRibbon[];
  rivers: River[];
  gaps: Gap[];
}

export const GUTTER = 62;
const RIGHT = 10;
const TOP = 22;
const BETWEEN = 16;
const APART = 2;
const LOWEST = 3;
const NARROWEST = 34;
const WIDEST = 240;
/** Height that the blocks of all bands are fitted into. */
const ROOM = 380;
const SHARE = 0.54;
const STEEP = 0.55;

/** What does not change from token to token, so that scrubbing moves nothing but the blocks. */
export function frame(evolution: Evolution, kinds: string[], available: number): Frame {
  const [first, last] = evolution.span;
  const cells = last - first + 1;
  const cell = within((available - GUTTER - RIGHT) / cells, NARROWEST, WIDEST);
  const heaviest = kinds.map((kind) => evolution.heaviest(kind));
  const sum = heaviest.reduce((total, one) => total + one, 0);
  const unit = within(ROOM / Math.max(sum, 0.1), 16, 64);
  let y = TOP;
  const bands = kinds.map((kind, i) => {
    // What is weak is drawn a little higher than it is, or it could not be hit.
    const height = Math.max(heaviest[i] * unit + evolution.k * APART + 2 * LOWEST, 40);
    const band = { kind, title: t(BANDS.find(([name]) => name === kind)?.[1] ?? kind), y, height };
    y += height + BETWEEN;
    return band;
  });
  return { first, last, left: GUTTER, cell, width: GUTTER + cells * cell + RIGHT, bands, height: y, unit };
}

export function layout(evolution: Evolution, column: Column, given: Frame): Layout {
  const blockWidth = Math.max(given.cell * SHARE, 14);
  const xOf = (layer: number) => given.left + (layer - given.first) * given.cell + (given.cell - blockWidth) / 2;
  const order = new Map(column.chains.map((chain, place) => [chain, place]));
  const placeOf = (block: Block) => order.get(column.chainOf.get(block.name) as Chain) ?? 0;
  const heightOf = (block: Block) => Math.max(weightOf(block) * given.unit, LOWEST);

  let lower = 0;
  const placed = new Map<string, Placed>();
  const bands = given.bands.map((band) => {
    const y = band.y + lower;
    let height = band.height;
    column.sites.forEach((blocks, site) => {
      if (evolution.sites[site].kind !== band.kind) return;
      // One order for all layers: ribbons never cross.
      const stack = [...blocks].sort((a, b) => placeOf(a) - placeOf(b));
      let at = y;
      for (const block of stack) {
        placed.set(block.name, { block, x: xOf(block.layer), y: at, width: blockWidth, height: heightOf(block) });
        at += heightOf(block) + APART;
      }
      height = Math.max(height, at - y);
    });
    lower += height - band.height;
    return { ...band, y, height };
  });
  const ribbons: PlacedRibbon[] = [];
  const rivers: River[] = [];
  for (const chain of column.chains) {
    for (const ribbon of chain.ribbons) {
      const [from, to] = [placed.get(ribbon.source.name), placed.get(ribbon.target.name)];
      if (from && to) ribbons.push({ ribbon, path: area(from, to) });
    }
    const places = chain.blocks.map((block) => placed.get(block.name)).filter((one) => one !== undefined);
    if (places.length > 1) rivers.push(river(chain, places));
  }
  const cells = new Map(bands.map((band) => [band.kind, band]));
  const gaps = evolution.missing.flatMap((site) => {
    const band = cells.get(site.kind);
    return band ? [{ site: site.name, x: xOf(site.layer), y: band.y, width: blockWidth, height: band.height }] : [];
  });
  return {
    frame: { ...given, bands, height: given.height + lower },
    blocks: [...placed.values()],
    ribbons,
    rivers,
    gaps,
  };
}

const n = (value: number) => String(Math.round(value * 10) / 10);

/** The area between the right side of one block and the left side of the next. */
function area(from: Placed, to: Placed): string {
  const [x1, x2] = [from.x + from.width, to.x];
  const middle = (x1 + x2) / 2;
  const [top1, top2] = [from.y, to.y];
  const [low1, low2] = [from.y + from.height, to.y + to.height];
  return (
    `M${n(x1)} ${n(top1)}C${n(middle)} ${n(top1)} ${n(middle)} ${n(top2)} ${n(x2)} ${n(top2)}` +
    `V${n(low2)}C${n(middle)} ${n(low2)} ${n(middle)} ${n(low1)} ${n(x1)} ${n(low1)}Z`
  );
}

function river(chain: Chain, places: Placed[]): River {
  const middle = (place: Placed) => place.y + place.height / 2;
  let path = `M${n(places[0].x + 5)} ${n(middle(places[0]))}H${n(places[0].x + places[0].width)}`;
  let end = places[0];
  for (let i = 1; i < places.length; i++) {
    const [from, to] = [places[i - 1], places[i]];
    // Letters on a steep place cannot be read: a name ends before it.
    if (Math.abs(middle(to) - middle(from)) > STEEP * (to.x - from.x - from.width)) break;
    end = to;
    const x = (from.x + from.width + to.x) / 2;
    path += `C${n(x)} ${n(middle(from))} ${n(x)} ${n(middle(to))} ${n(to.x)} ${n(middle(to))}H${n(to.x + to.width)}`;
  }
  const heights = places.map((place) => place.height);
  return { chain, path, length: end.x + end.width - places[0].x - 10, height: Math.min(...heights.slice(0, 3)) };
}

/** The block a key leads to from one: along its ribbon or to the nearest of the next layer, or up and down. */
export function neighbour(found: Layout, column: Column, name: string, key: string): Block | null {
  const here = found.blocks.find(({ block }) => block.name === name);
  if (!here) return null;
  const middle = here.y + here.height / 2;
  const nearest = (places: Placed[]) =>
    places.reduce<Placed | null>((best, place) => {
      const away = (one: Placed) => Math.abs(one.y + one.height / 2 - middle);
      return best === null || away(place) < away(best) ? place : best;
    }, null)?.block ?? null;
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const by = key === "ArrowRight" ? 1 : -1;
    const chain = column.chainOf.get(name);
    const at = chain?.blocks.findIndex((block) => block.name === name) ?? -1;
    const joined = at < 0 ? undefined : chain?.blocks[at + by];
    if (joined) return joined;
    const beside = found.blocks.filter(
      ({ block }) => block.kind === here.block.kind && (block.layer - here.block.layer) * by > 0,
    );
    const layer = beside.reduce(
      (best, { block }) => (best === null || (block.layer - best) * by < 0 ? block.layer : best),
      null as number | null,
    );
    return nearest(beside.filter(({ block }) => block.layer === layer));
  }
  if (key === "ArrowUp" || key === "ArrowDown") {
    const by = key === "ArrowDown" ? 1 : -1;
    const over = found.blocks.filter((one) => one.block.layer === here.block.layer && (one.y - here.y) * by > 0);
    return nearest(over);
  }
  const stack = found.blocks.filter(({ block }) => block.kind === here.block.kind);
  const ends = stack.sort((a, b) => a.block.layer - b.block.layer || a.y - b.y);
  if (key === "Home") return ends[0].block;
  if (key === "End") return ends.filter(({ block }) => block.layer === ends[ends.length - 1].block.layer)[0].block;
  return null;
}
