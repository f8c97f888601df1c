/** Activations read in units of each feature's own maximum. */

import { decodeArray, type SparseActs, type WireArray } from "./wire";

/** Largest known activation of each feature that is on in the text, by ascending feature: values times scale. */
export interface WireMaxima {
  values: WireArray;
  scale: number;
}

/** One feature at one token. */
export interface Active {
  feature: number;
  raw: number;
  /** raw / maximum; NaN when the maximum is not known. */
  strength: number;
  /** What colours and orders: the strength, or raw / the largest value in this text. */
  shade: number;
}

export interface Peak extends Active {
  token: number;
}

/** Per token, its strongest feature. */
interface Tops {
  shades: Float32Array;
  features: Uint32Array;
  raws: Float32Array;
}

export class Strengths {
  readonly acts: SparseActs;
  readonly #maximum = new Map<number, number>();
  readonly #special: boolean[];
  #peaks: Peak[] | undefined;
  #tops: Tops | undefined;

  constructor(acts: SparseActs, maxima: WireMaxima | null, special: boolean[]) {
    this.acts = acts;
    this.#special = special;
    if (!maxima) return;
    const values = decodeArray(maxima.values);
    const on = acts.active();
    if (on.length !== values.length) throw new Error("the maxima do not belong to these activations");
    on.forEach((feature, i) => {
      if (values[i] > 0) this.#maximum.set(feature, values[i] * maxima.scale);
    });
  }

  /** The feature's own largest known activation, raw; NaN when not known. */
  maximum(feature: number): number {
    return this.#maximum.get(feature) ?? Number.NaN;
  }

  /** The raw value that gets the full colour: the maximum, else the largest in this text (special tokens left out). */
  scale(feature: number): number {
    return this.#maximum.get(feature) ?? this.#largest(feature);
  }

  /** The features on at a token, the strongest first. Special tokens have none. */
  at(token: number, limit = Number.POSITIVE_INFINITY): Active[] {
    if (this.#special[token]) return [];
    const { features, values } = this.acts.row(token);
    const active: Active[] = [];
    for (let i = 0; i < features.length; i++) active.push(this.#active(features[i], values[i]));
    return active.sort(byShade).slice(0, limit);
  }

  /** Every feature on in the text at its strongest token, the strongest first. */
  peaks(): Peak[] {
    this.#peaks ??= this.#findPeaks();
    return this.#peaks;
  }

  /** One feature's shade at every token. */
  shades(feature: number): Float32Array {
    const shades = this.acts.column(feature);
    const scale = this.scale(feature);
    for (let token = 0; token < shades.length; token++)
      shades[token] = this.#special[token] || !(scale > 0) ? 0 : shades[token] / scale;
    return shades;
  }

  /** The largest shade at every token, whatever the feature. */
  strongest(): Float32Array {
    return this.#findTops().shades;
  }

  /** The strongest feature at a token, or null where none is on. */
  top(token: number): Active | null {
    const { shades, features, raws } = this.#findTops();
    return shades[token] > 0 ? this.#active(features[token], raws[token]) : null;
  }

  /** One feature at one token, or null where it is off. */
  one(token: number, feature: number): Active | null {
    const { tokens, values } = this.acts.entries(feature);
    const place = tokens.indexOf(token);
    return place < 0 ? null : this.#active(feature, values[place]);
  }

  /** Whether any active feature has no known maximum. */
  get someUnknown(): boolean {
    return this.acts.active().some((feature) => !this.#maximum.has(feature));
  }

  #findPeaks(): Peak[] {
    const peaks: Peak[] = [];
    for (const feature of this.acts.active()) {
      const { tokens, values } = this.acts.entries(feature);
      let best = -1;
      for (let i = 0; i < tokens.length; i++)
        if (!this.#special[tokens[i]] && (best < 0 || values[i] > values[best])) best = i;
      if (best >= 0) peaks.push({ ...this.#active(feature, values[best]), token: tokens[best] });
    }
    return peaks.sort(byShade);
  }

  #findTops(): Tops {
    if (this.#tops) return this.#tops;
    const { tokens } = this.acts;
    const tops = {
      shades: new Float32Array(tokens),
      features: new Uint32Array(tokens),
      raws: new Float32Array(tokens),
    };
    for (const feature of this.acts.active()) {
      const scale = this.scale(feature);
      if (!(scale > 0)) continue;
      const on = this.acts.entries(feature);
      for (let i = 0; i < on.tokens.length; i++) {
        const token = on.tokens[i];
        const shade = Math.fround(on.values[i] / scale);
        if (this.#special[token] || shade <= tops.shades[token]) continue;
        tops.shades[token] = shade;
        tops.features[token] = feature;
        tops.raws[token] = on.values[i];
      }
    }
    this.#tops = tops;
    return tops;
  }

  #active(feature: number, raw: number): Active {
    const scale = this.scale(feature);
    return { feature, raw, strength: raw / this.maximum(feature), shade: scale > 0 ? raw / scale : 0 };
  }

  #largest(feature: number): number {
    const { tokens, values } = this.acts.entries(feature);
    let largest = 0;
    for (let i = 0; i < tokens.length; i++) if (!this.#special[tokens[i]]) largest = Math.max(largest, values[i]);
    return largest;
  }
}

/** Equal strengths keep feature order, so that a list does not jump. */
function byShade(a: Active, b: Active): number {
  return b.shade - a.shade || a.feature - b.feature;
}
