/** What a FeatureCard shows, as the kernel writes it (widgets/card_wire.py). Any host may have put anything there. */

import type { Token } from "./token";

export interface Evidence {
  /** The index it is from. */
  index: string;
  tokens: number;
  fired: number;
  maximum: number;
  mean: number;
  /** Activations above 0, counted between `edges`. */
  counts: number[];
  edges: number[];
  on: [text: string, count: number][];
  looked_at: number;
  together: [feature: string, share: number, together: number][];
}

export interface Shown {
  feature: string;
  /** How many features its site has. */
  width: number;
  maximum: number | null;
  density: number | null;
  promotes: [text: string, logit: number | null][];
  suppresses: [text: string, logit: number | null][];
  neuronpedia: string | null;
  evidence: Evidence | null;
  /** Without evidence: why there is none, and what to do. */
  why: string;
}

export interface Label {
  text: string;
  source: string;
  by: string;
  score: number | null;
}

export interface Said {
  labels: Label[];
  note: string;
  starred: boolean;
}

export interface Example {
  tokens: string[];
  acts: number[];
  peak: number;
  value: number;
  document: number;
  position: number;
  /** Between which tokens activations are known; null: at all of them. */
  known: [from: number, to: number] | null;
}

export interface Interval {
  low: number;
  high: number;
  examples: Example[];
}

export interface Examples {
  context: number | null;
  top: Example[];
  intervals: Interval[];
}

export interface Near {
  state: "running" | "known" | "failed";
  error: string | null;
  own: [feature: string, cosine: number][];
  others: [feature: string, cosine: number][];
}

export interface Name {
  label: string;
  source: string;
  promotes: string[];
}

export interface More {
  feature: string;
  threshold: number | null;
  names: Record<string, Name>;
  promotes?: Shown["promotes"];
  suppresses?: Shown["suppresses"];
}

export interface Reading {
  text: string;
  feature: string;
  tokens: Token[];
  acts: number[];
  error: string | null;
}

export interface Followed {
  before: string[];
  after: string[];
  change: number[];
}

export interface Ablated {
  state: "running" | "finished" | "stopped" | "failed";
  error: string | null;
  of: number;
  next: number | null;
  after: number | null;
  helped: number;
  tokens: number;
  rows: Followed[];
}

/** Tokens on each side of an example; null is the whole passage. */
export const CONTEXTS: (number | null)[] = [5, 10, 20, 50, null];

const NOTHING: Shown = {
  feature: "",
  width: 0,
  maximum: null,
  density: null,
  promotes: [],
  suppresses: [],
  neuronpedia: null,
  evidence: null,
  why: "",
};

const record = (given: unknown): Record<string, unknown> =>
  typeof given === "object" && given !== null && !Array.isArray(given) ? (given as Record<string, unknown>) : {};
const orNull = <T>(given: unknown): T | null => (Object.keys(record(given)).length ? (given as T) : null);

export const readShown = (given: unknown): Shown => ({ ...NOTHING, ...(record(given) as Partial<Shown>) });
export const readSaid = (given: unknown): Said => ({
  labels: [],
  note: "",
  starred: false,
  ...(record(given) as Partial<Said>),
});
export const readExamples = (given: unknown): Examples => ({
  context: 10,
  top: [],
  intervals: [],
  ...(record(given) as Partial<Examples>),
});
export const readNear = (given: unknown): Near | null => orNull<Near>(given);
export const readReading = (given: unknown): Reading | null => orNull<Reading>(given);
export const readAblated = (given: unknown): Ablated | null => orNull<Ablated>(given);
export const readMore = (given: unknown): More => ({
  feature: "",
  threshold: null,
  names: {},
  ...(record(given) as Partial<More>),
});
export const readTrail = (given: unknown): string[] => (Array.isArray(given) ? given.map(String) : []);
export const readContext = (given: unknown): number | null => (typeof given === "number" ? given : null);
export const readText = (given: unknown): string => (typeof given === "string" ? given : "");

/** The largest activation of a reading, or null where there is none. */
export function peakOf(reading: Reading | null): number | null {
  if (reading === null || reading.error !== null || !reading.acts.length) return null;
  return Math.max(...reading.acts);
}
