/** An evolution as the kernel writes it, from plain values. */

import type { WireEvolution, WireGuesses } from "../../js/core/evolution";
import { array, token } from "./fake";

export interface Plain {
  sites: string[];
  missing?: string[];
  /** [site][token] -> feature: raw value. */
  blocks: Record<number, number>[][];
  maxima: Record<string, number>;
  ribbons?: [from: string, to: string, cosine: number, coactivation: number][];
  /** [token] -> per layer the text of the only guess. */
  guesses?: (string[] | null)[];
}

export function wireEvolution({ sites, missing = [], blocks, maxima, ribbons = [] }: Plain): WireEvolution {
  const counts: number[] = [];
  const features: number[] = [];
  const values: number[] = [];
  const known: number[] = [];
  sites.forEach((site, i) => {
    const here = new Set<number>();
    for (const at of blocks[i]) {
      const own = Object.entries(at).map(([feature, value]) => [Number(feature), value]);
      own.sort((a, b) => b[1] - a[1]);
      counts.push(own.length);
      for (const [feature, value] of own) {
        features.push(feature);
        values.push(value / 2);
        here.add(feature);
      }
    }
    for (const feature of [...here].sort((a, b) => a - b)) known.push(maxima[`${site}/${feature}`] ?? Number.NaN);
  });
  const tokens = blocks[0]?.length ?? 0;
  const split = (name: string) => name.split("/");
  const place = (name: string) => sites.indexOf(split(name)[0]);
  return {
    k: 8,
    layers: 4,
    sites,
    missing,
    counts: array("u1", counts),
    features: array("u2", features),
    values: array("f4", values),
    scales: array(
      "f4",
      sites.map(() => 2),
    ),
    maxima: array("f4", known),
    l0: array("u2", counts),
    norms: array(
      "f4",
      counts.map((_, i) => (i % 7) / 7),
    ),
    normScales: array(
      "f4",
      sites.map(() => 10),
    ),
    fvus: array(
      "f4",
      counts.map((_, i) => (i % tokens === 0 ? Number.NaN : 0.25)),
    ),
    ribbons: {
      from: array(
        "u1",
        ribbons.map(([from]) => place(from)),
      ),
      to: array(
        "u1",
        ribbons.map(([, to]) => place(to)),
      ),
      source: array(
        "u2",
        ribbons.map(([from]) => Number(split(from)[1])),
      ),
      target: array(
        "u2",
        ribbons.map(([, to]) => Number(split(to)[1])),
      ),
      cosine: array(
        "f4",
        ribbons.map(([, , cosine]) => cosine),
      ),
      coactivation: array(
        "f4",
        ribbons.map(([, , , together]) => together),
      ),
    },
  };
}

export function wireGuesses({ guesses = [] }: Pick<Plain, "guesses">): WireGuesses {
  const texts = [...new Set(guesses.flatMap((one) => one ?? []))];
  const positions = guesses.flatMap((one, at) => (one ? [at] : []));
  const all = positions.flatMap((at) => guesses[at] ?? []);
  const layers = guesses[positions[0]]?.length ?? 0;
  return {
    positions: array("u2", positions),
    layers: array(
      "u1",
      Array.from({ length: layers }, (_, i) => i),
    ),
    texts,
    ids: array(
      "u2",
      texts.map((_, i) => 100 + i),
    ),
    tokens: array(
      "u2",
      all.map((text) => texts.indexOf(text)),
    ),
    probabilities: array(
      "f4",
      all.map(() => 0.5),
    ),
    entropies: array(
      "f4",
      all.map((_, i) => i),
    ),
    notes: [],
  };
}

/** res.0 to res.2 and mlp.1; mlp.0 and mlp.2 are there too, mlp.1 is not open. <bos>, " a", " b". */
export const PLAIN: Plain = {
  sites: ["res.0", "mlp.0", "res.1", "res.2", "mlp.2"],
  missing: ["mlp.1"],
  blocks: [
    [{ 0: 900 }, { 0: 4, 3: 1 }, { 3: 2 }],
    [{ 5: 900 }, { 5: 2 }, {}],
    [{ 7: 900 }, { 7: 8, 1: 3 }, { 1: 1 }],
    [{ 2: 900 }, { 2: 5 }, { 2: 1, 9: 6 }],
    [{ 5: 900 }, { 5: 1 }, { 6: 2 }],
  ],
  maxima: {
    "res.0/0": 8,
    "res.0/3": 4,
    "res.1/7": 10,
    "res.1/1": 3,
    "res.2/2": 10,
    "res.2/9": 6,
    "mlp.0/5": 4,
    "mlp.2/5": 4,
  },
  ribbons: [
    ["res.0/0", "res.1/7", 0.9, 0.5],
    ["res.1/7", "res.2/2", 0.8, Number.NaN],
    ["mlp.0/5", "mlp.2/5", 0.99, 0.9],
  ],
  guesses: [null, ["x", "y", " Paris"], ["x", "x", "y"]],
};

export const SPECIAL = [true, false, false];

export function evolutionState(more: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    protocol: 1,
    about: { model: "tiny", scope: null, device: "cpu", dtype: "float32", note: "" },
    tokens: [token("<bos>", { special: true }), token(" a"), token(" b")],
    layers: wireEvolution(PLAIN),
    guesses: wireGuesses(PLAIN),
    guessing: false,
    names: { "res.0/0": ["cities", true], "res.1/7": ["on “a” · promotes “b”", false] },
    selection: { token: 1, feature: null },
    view: "layers",
    attribution: null,
    card: null,
    palette: "blue",
    facts: null,
    ...more,
  };
}
