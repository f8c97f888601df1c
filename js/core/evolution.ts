/** A text from layer to layer: at every token and site the strongest features, and which are joined to which. */

import { featureName, parseFeature } from "./feature";
import { within } from "./numbers";
import { decodeArray, type Numbers, type WireArray } from "./wire";
import { mark } from "./words";

/** As widgets/evolution_wire.py writes it. Arrays run over sites first, then tokens. */
export interface WireEvolution {
  k: number;
  /** Layers of the model. */
  layers: number;
  sites: string[];
  /** Not open, between the first and the last open layer of their kind. */
  missing: string[];
  /** Positions whose blocks are there; null for all. */
  kept?: [from: number, to: number] | null;
  counts: WireArray;
  features: WireArray;
  /** Raw, divided by their site's scale. */
  values: WireArray;
  scales: WireArray;
  /** Of each feature shown at a site, by ascending feature; NaN is not known. */
  maxima: WireArray;
  l0: WireArray;
  norms: WireArray;
  normScales: WireArray;
  fvus: WireArray;
  ribbons: {
    from: WireArray;
    to: WireArray;
    source: WireArray;
    target: WireArray;
    cosine: WireArray;
    coactivation: WireArray;
  };
}

export interface WireGuesses {
  positions: WireArray;
  layers: WireArray;
  texts: string[];
  ids: WireArray;
  /** Places in `texts` [position, layer, guess], with their probabilities. */
  tokens: WireArray;
  probabilities: WireArray;
  entropies: WireArray;
  notes: string[];
}

export interface SiteRef {
  name: string;
  kind: string;
  layer: number;
}

/** One feature at one token. */
export interface Block {
  /** Its place among the sites. */
  site: number;
  kind: string;
  layer: number;
  feature: number;
  /** "res.12/834". */
  name: string;
  raw: number;
  /** raw / maximum; NaN when the maximum is not known. */
  strength: number;
  /** What sizes and colours it: the strength, or raw / the largest value in this text. */
  shade: number;
}

/** Two blocks of neighbouring layers that are the same thing. */
export interface Ribbon {
  source: Block;
  target: Block;
  cosine: number;
  /** NaN when not known. */
  coactivation: number;
}

/** Blocks that are one thing, from the layer where it is born to the last that carries it. */
export interface Chain {
  blocks: Block[];
  ribbons: Ribbon[];
}

export interface GuessAt {
  layer: number;
  tokens: { id: number; text: string; probability: number }[];
  /** Nats. */
  entropy: number;
}

export interface Measures {
  l0: number;
  norm: number;
  /** NaN when not known. */
  fvu: number;
}

export interface Column {
  position: number;
  /** Those of each site, as `Evolution.sites`, strongest first. */
  sites: Block[][];
  chains: Chain[];
  /** Which chain a block is part of, by name. */
  chainOf: Map<string, Chain>;
}

/** Kinds of sites in the order of their bands. */
export const BANDS: [kind: string, title: string][] = [
  ["res", mark("residual")],
  ["att", mark("attention")],
  ["mlp", "MLP"],
  ["transcoder", mark("transcoder")],
];

const NONE = new Uint8Array(0);

/** A block may be this much higher than one at its own maximum. */
const MOST = 1.25;

export const weightOf = (block: Block): number => within(block.shade, 0, MOST);

/** Features of all sites in one number; no SAE is wider than 2^24. */
const keyOf = (site: number, feature: number) => site * 2 ** 24 + feature;

interface Joined {
  site: number;
  feature: number;
  cosine: number;
  coactivation: number;
}

export class Evolution {
  readonly k: number;
  readonly layers: number;
  readonly tokens: number;
  readonly sites: SiteRef[];
  readonly missing: SiteRef[];
  notes: string[] = [];
  /** Layers that have guesses, ascending. */
  guessed: number[] = [];
  readonly #kept: [number, number] | null;
  readonly #starts: Uint32Array;
  readonly #features: Numbers;
  readonly #values: Numbers;
  readonly #scales: Numbers;
  readonly #maxima: Map<number, number>;
  readonly #largest: Map<number, number>;
  readonly #l0: Numbers;
  readonly #norms: Numbers;
  readonly #normScales: Numbers;
  readonly #fvus: Numbers;
  readonly #next = new Map<number, Joined>();
  readonly #before = new Map<number, Joined>();
  readonly #special: boolean[];
  #guessAt = new Map<number, number>();
  #guessTexts: string[] = [];
  #guessIds: Numbers = NONE;
  #guessTokens: Numbers = NONE;
  #guessShares: Numbers = NONE;
  #entropies: Numbers = NONE;

  /** `special` says which tokens the SAEs were not trained on: they have no blocks. */
  constructor(wire: WireEvolution, special: boolean[], guesses: WireGuesses) {
    this.k = wire.k;
    this.layers = wire.layers;
    this.tokens = special.length;
    this.#special = special;
    this.sites = wire.sites.map(siteRef);
    this.missing = wire.missing.map(siteRef);
    this.#kept = wire.kept ?? null;
    const cells = this.sites.length * this.tokens;
    const counts = decodeArray(wire.counts);
    this.#starts = new Uint32Array(cells + 1);
    for (let i = 0; i < cells; i++) this.#starts[i + 1] = this.#starts[i] + counts[i];
    this.#features = decodeArray(wire.features);
    this.#values = decodeArray(wire.values);
    this.#scales = decodeArray(wire.scales);
    this.#l0 = decodeArray(wire.l0);
    this.#norms = decodeArray(wire.norms);
    this.#normScales = decodeArray(wire.normScales);
    this.#fvus = decodeArray(wire.fvus);
    const fits =
      counts.length === cells &&
      this.#starts[cells] === this.#features.length &&
      this.#values.length === this.#features.length &&
      [this.#l0, this.#norms, this.#fvus].every((one) => one.length === cells) &&
      [this.#scales, this.#normScales].every((one) => one.length === this.sites.length);
    if (!fits) throw new Error("the parts of the evolution do not fit together");
    this.#largest = new Map();
    this.#maxima = new Map();
    this.#readMaxima(decodeArray(wire.maxima));
    this.#readRibbons(wire.ribbons);
    this.learn(guesses);
  }

  /** What the model would say, instead of what was known of that. */
  learn(wire: WireGuesses): void {
    this.guessed = [...decodeArray(wire.layers)];
    this.#guessTexts = wire.texts;
    this.#guessIds = decodeArray(wire.ids);
    this.#guessTokens = decodeArray(wire.tokens);
    this.#guessShares = decodeArray(wire.probabilities);
    this.#entropies = decodeArray(wire.entropies);
    this.#guessAt = new Map([...decodeArray(wire.positions)].map((position, place) => [position, place]));
    this.notes = wire.notes;
  }

  /** Kinds that are open, in the order of their bands. */
  get kinds(): string[] {
    const open = new Set(this.sites.map((site) => site.kind));
    return [...BANDS.map(([kind]) => kind).filter((kind) => open.has(kind))];
  }

  /** First and last layer to be drawn. */
  get span(): [first: number, last: number] {
    const layers = this.sites.map((site) => site.layer);
    if (!layers.length) return this.guessed.length ? [this.guessed[0], this.guessed.at(-1) as number] : [0, 0];
    return [Math.min(...layers), Math.max(...layers)];
  }

  isSpecial(token: number): boolean {
    return this.#special[token] === true;
  }

  /** Whether a token's blocks are here: of a long text, a saved picture keeps a part. */
  holds(token: number): boolean {
    return this.#kept === null || (token >= this.#kept[0] && token < this.#kept[1]);
  }

  siteAt(name: string): number {
    return this.sites.findIndex((site) => site.name === name);
  }

  /** What is on at a token and a site, strongest first. Special tokens have none. */
  blocks(token: number, site: number): Block[] {
    if (this.#special[token] !== false) return [];
    const cell = site * this.tokens + token;
    const made: Block[] = [];
    for (let i = this.#starts[cell]; i < this.#starts[cell + 1]; i++)
      made.push(this.#block(site, this.#features[i], this.#values[i] * this.#scales[site]));
    return made;
  }

  /** A block of a feature whose value is known from elsewhere; `strength` NaN where its maximum is not known. */
  made(name: string, raw: number, strength: number): Block | null {
    const parsed = parseFeature(name);
    const site = parsed ? this.siteAt(parsed.site) : -1;
    if (!parsed || site < 0) return null;
    // Without a maximum nothing says how large that is: as small as what can still be seen.
    return { ...this.#block(site, parsed.index, raw), strength, shade: Number.isNaN(strength) ? 0.1 : strength };
  }

  measures(token: number, site: number): Measures {
    const cell = site * this.tokens + token;
    return {
      l0: this.#l0[cell],
      norm: this.#norms[cell] * this.#normScales[site],
      fvu: this.#fvus[cell],
    };
  }

  /** What the model would say after a token if it stopped at each layer; empty where that was not asked for. */
  guesses(token: number): GuessAt[] {
    const place = this.#guessAt.get(token);
    if (place === undefined) return [];
    const layers = this.guessed.length;
    const each = this.#guessTokens.length / Math.max(layers * this.#guessAt.size, 1);
    return this.guessed.map((layer, i) => {
      const from = (place * layers + i) * each;
      const tokens = Array.from({ length: each }, (_, n) => {
        const at = this.#guessTokens[from + n];
        return { id: this.#guessIds[at], text: this.#guessTexts[at], probability: this.#guessShares[from + n] };
      });
      return { layer, tokens, entropy: this.#entropies[place * layers + i] };
    });
  }

  /** One token with what joins its blocks. `more` are blocks shown besides the strongest. */
  column(token: number, more: Block[] = []): Column {
    const sites = this.sites.map((_, site) => this.blocks(token, site));
    for (const block of more)
      if (!sites[block.site].some(({ feature }) => feature === block.feature)) sites[block.site].push(block);
    const shown = new Map<number, Block>();
    for (const block of sites.flat()) shown.set(keyOf(block.site, block.feature), block);
    const chains: Chain[] = [];
    const chainOf = new Map<string, Chain>();
    for (const [key, block] of shown) {
      const before = this.#before.get(key);
      if (before && shown.has(keyOf(before.site, before.feature))) continue;
      const chain: Chain = { blocks: [block], ribbons: [] };
      let [at, joined] = [block, this.#next.get(key)];
      while (joined) {
        const next = shown.get(keyOf(joined.site, joined.feature));
        if (!next) break;
        chain.ribbons.push({ source: at, target: next, cosine: joined.cosine, coactivation: joined.coactivation });
        chain.blocks.push(next);
        at = next;
        joined = this.#next.get(keyOf(next.site, next.feature));
      }
      chains.push(chain);
      for (const one of chain.blocks) chainOf.set(one.name, chain);
    }
    chains.sort(byWeight);
    return { position: token, sites, chains, chainOf };
  }

  /** A feature with its matches through all layers, earliest first, whether they are on at one token or not. */
  trail(name: string): string[] {
    const parsed = parseFeature(name);
    const site = parsed ? this.siteAt(parsed.site) : -1;
    if (!parsed || site < 0) return [];
    const found = [name];
    const nameOf = (joined: Joined) => featureName(this.sites[joined.site].name, joined.feature);
    let at = this.#before.get(keyOf(site, parsed.index));
    for (; at; at = this.#before.get(keyOf(at.site, at.feature))) found.unshift(nameOf(at));
    at = this.#next.get(keyOf(site, parsed.index));
    for (; at; at = this.#next.get(keyOf(at.site, at.feature))) found.push(nameOf(at));
    return found;
  }

  /** What is known of two features being the same thing; null where nothing joins them. */
  joint(source: string, target: string): { cosine: number; coactivation: number } | null {
    const from = parseFeature(source);
    const to = parseFeature(target);
    if (!from || !to) return null;
    const joined = this.#next.get(keyOf(this.siteAt(from.site), from.index));
    return joined && joined.feature === to.index && this.sites[joined.site].name === to.site ? joined : null;
  }

  /** What a band of a kind must be high enough for: the largest sum of weights at one site, of all but the heaviest
   * tokens. Those are the first ones of a text, and would leave the others half of the room. */
  heaviest(kind: string): number {
    const sums = new Float32Array(this.tokens);
    this.sites.forEach((site, i) => {
      if (site.kind !== kind) return;
      for (let token = 0; token < this.tokens; token++) {
        if (this.#special[token]) continue;
        const cell = i * this.tokens + token;
        let sum = 0;
        for (let at = this.#starts[cell]; at < this.#starts[cell + 1]; at++)
          sum += Math.min(this.#shade(keyOf(i, this.#features[at]), this.#values[at] * this.#scales[i]), MOST);
        sums[token] = Math.max(sums[token], sum);
      }
    });
    const shown = sums.filter((_, token) => !this.#special[token] && this.holds(token)).sort();
    return shown[Math.floor((shown.length - 1) * 0.8)] ?? 0;
  }

  /** Shades of the features of a trail [feature][token]; NaN where one is not among those shown. */
  concept(features: string[]): { features: string[]; values: Float32Array[] } {
    const values = features.map((one) => {
      const parsed = parseFeature(one);
      const site = this.siteAt(parsed?.site ?? "");
      const row = new Float32Array(this.tokens).fill(Number.NaN);
      for (let token = 0; token < this.tokens; token++) {
        if (site < 0 || this.#special[token]) continue;
        const cell = site * this.tokens + token;
        for (let at = this.#starts[cell]; at < this.#starts[cell + 1]; at++)
          if (this.#features[at] === parsed?.index)
            row[token] = this.#shade(keyOf(site, parsed.index), this.#values[at] * this.#scales[site]);
      }
      return row;
    });
    return { features, values };
  }

  /** Whether a feature's own maximum is known. */
  knows(site: number, feature: number): boolean {
    return this.#maxima.has(keyOf(site, feature));
  }

  /** Whether any feature shown has no known maximum. */
  get someUnknown(): boolean {
    return this.#maxima.size < this.#largest.size;
  }

  #shade(key: number, raw: number): number {
    const scale = this.#maxima.get(key) ?? this.#largest.get(key) ?? raw;
    return scale > 0 ? raw / scale : 0;
  }

  #block(site: number, feature: number, raw: number): Block {
    const { kind, layer, name } = this.sites[site];
    const key = keyOf(site, feature);
    return {
      site,
      kind,
      layer,
      feature,
      name: featureName(name, feature),
      raw,
      strength: raw / (this.#maxima.get(key) ?? Number.NaN),
      shade: this.#shade(key, raw),
    };
  }

  #readMaxima(maxima: Numbers): void {
    let read = 0;
    for (let site = 0; site < this.sites.length; site++) {
      const from = this.#starts[site * this.tokens];
      const to = this.#starts[(site + 1) * this.tokens];
      const features = [...new Set(this.#features.subarray(from, to))].sort((a, b) => a - b);
      for (const feature of features) {
        const known = maxima[read++];
        if (known > 0) this.#maxima.set(keyOf(site, feature), known);
      }
      for (let token = 0; token < this.tokens; token++) {
        const cell = site * this.tokens + token;
        for (let i = this.#starts[cell]; i < this.#starts[cell + 1]; i++) {
          const key = keyOf(site, this.#features[i]);
          // A special token's huge value is no measure for the others.
          const raw = this.#special[token] ? 0 : this.#values[i] * this.#scales[site];
          this.#largest.set(key, Math.max(this.#largest.get(key) ?? 0, raw));
        }
      }
    }
    if (read !== maxima.length) throw new Error("the maxima do not belong to these features");
  }

  #readRibbons(wire: WireEvolution["ribbons"]): void {
    const [from, to, source, target] = [wire.from, wire.to, wire.source, wire.target].map(decodeArray);
    const [cosine, coactivation] = [wire.cosine, wire.coactivation].map(decodeArray);
    for (let i = 0; i < from.length; i++) {
      const [one, two] = [this.sites[from[i]], this.sites[to[i]]];
      // What is not neighbouring is never joined, whatever came: a gap stays one.
      if (!one || !two || one.kind !== two.kind || two.layer !== one.layer + 1) continue;
      const known = { cosine: cosine[i], coactivation: coactivation[i] };
      this.#next.set(keyOf(from[i], source[i]), { site: to[i], feature: target[i], ...known });
      this.#before.set(keyOf(to[i], target[i]), { site: from[i], feature: source[i], ...known });
    }
  }
}

function siteRef(name: string): SiteRef {
  const [kind, layer] = name.split(".");
  return { name, kind, layer: Number(layer) };
}

const heft = (chain: Chain) => chain.blocks.reduce((sum, block) => sum + weightOf(block), 0);

/** What lasts comes first, and of that what is strongest; equal ones by name, so that nothing jumps. */
function byWeight(a: Chain, b: Chain): number {
  const lasting = Number(b.blocks.length > 1) - Number(a.blocks.length > 1);
  return (
    lasting || heft(b) - heft(a) || a.blocks[0].site - b.blocks[0].site || a.blocks[0].feature - b.blocks[0].feature
  );
}

/** What came over the wire, or null if there is nothing. Throws when its parts do not fit together. */
export function readEvolution(given: unknown, special: boolean[], guesses: unknown): Evolution | null {
  return typeof given === "object" && given !== null && "counts" in given
    ? new Evolution(given as WireEvolution, special, guesses as WireGuesses)
    : null;
}
