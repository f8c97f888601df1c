/** What a SteeringDesk shows, as the kernel writes it (widgets/steering_wire.py). Any host may have put anything there. */

import type { Token } from "./token";
import { mark } from "./words";

export const KINDS = ["add", "clamp", "scale", "ablate"] as const;
export type Kind = (typeof KINDS)[number];

/** With h the tensor at the site, f the feature's activation, d its decoder row, m its own maximum. */
export const FORMULAS: Record<Kind, string> = {
  add: "h + s·m·d",
  clamp: "h + (s·m − f)·d",
  scale: "h + (k − 1)·f·d",
  ablate: "h − f·d",
};

export interface EditRow {
  key: number;
  /** One of KINDS, or "add_vector". */
  kind: string;
  site: string;
  feature: string | null;
  strength: number;
  maximum: number | null;
  /** What someone says the feature is about; empty where nobody did. */
  label?: string;
  promotes: string[];
  /** Where it acts and under which condition, in words; null for everywhere and always. */
  where: string | null;
  when: string | null;
  formula: string;
  raw: number | null;
  error: string | null;
}

export interface Effect {
  silent: boolean;
  why: string | null;
  fired: number;
  of: number;
  share: number | null;
  norm: number | null;
  peak: number | null;
  /** A character per token, "1" where the edit acted; only for edits with a condition. */
  timeline: string | null;
}

export interface NewToken {
  id: number;
  text: string;
  bytes?: string;
  special?: boolean;
  logprob: number | null;
}

export interface Arm {
  name: string;
  tokens: NewToken[];
  stopped: string | null;
  notes: string[];
}

export interface Movers {
  layer: number;
  /** Mean strengths before and after, null where the maximum is not known; and raw means. */
  features: {
    feature: string;
    label?: string;
    promotes: string[];
    from: number | null;
    to: number | null;
    raw: [number, number];
  }[];
}

export type RunState = "idle" | "waiting" | "running" | "finished" | "stopped" | "failed";

export interface Run {
  id: number;
  state: RunState;
  error: string | null;
  arms: Arm[];
  effects: Record<string, Effect>;
  movers: Movers[];
}

export type Band = "none" | "works" | "breaks";

export interface DoseRow {
  strength: number;
  tokens: NewToken[];
  /** The first new token that differs from the default text; null where none does. */
  diverges: number | null;
  /** Mean over the default's tokens, in nats. */
  kl: number | null;
  /** Mean -log probability of the text under the default model, nats per token. */
  surprise: number | null;
  /** Share of repeated 4-grams. */
  repetition: number | null;
  band: Band;
  safety: number | null;
}

export interface Dose {
  key: number;
  state: "running" | "finished" | "stopped" | "failed";
  error: string | null;
  rows: DoseRow[];
  /** The text without that edit, and its own figures; not there before the sweep has ended. */
  default?: NewToken[];
  surprise?: number | null;
  repetition?: number | null;
}

export interface Turn {
  user: string;
  default: string;
  steered: string;
}

export interface Sampling {
  max_new_tokens: number;
  temperature: number;
  top_k: number | null;
  top_p: number | null;
  seed: number;
}

export interface Colour {
  feature: string | null;
  arms: Record<string, number[] | null>;
  options: { feature: string; label?: string; promotes: string[] }[];
}

export const ARM_NAMES: Record<string, string> = {
  default: mark("default"),
  steered: mark("steered"),
  random: mark("control: random direction"),
  flipped: mark("control: sign flipped"),
};

export const NO_RUN: Run = { id: 0, state: "idle", error: null, arms: [], effects: {}, movers: [] };
const SAMPLING: Sampling = { max_new_tokens: 32, temperature: 0, top_k: null, top_p: null, seed: 0 };

const list = <T>(given: unknown): T[] => (Array.isArray(given) ? given : []);
const record = (given: unknown): Record<string, unknown> =>
  typeof given === "object" && given !== null && !Array.isArray(given) ? (given as Record<string, unknown>) : {};

export const readRows = (given: unknown): EditRow[] => list<EditRow>(given);
export const readTurns = (given: unknown): Turn[] => list<Turn>(given);
export const readRun = (given: unknown): Run => ({ ...NO_RUN, ...(record(given) as Partial<Run>) });
export const readDose = (given: unknown): Dose | null =>
  given === null || given === undefined ? null : ({ rows: [], ...record(given) } as unknown as Dose);
export const readSampling = (given: unknown): Sampling => ({ ...SAMPLING, ...(record(given) as Partial<Sampling>) });
export function readColour(given: unknown): Colour {
  const { feature, arms, options } = record(given);
  return {
    feature: typeof feature === "string" ? feature : null,
    arms: record(arms) as Colour["arms"],
    options: list<Colour["options"][number]>(options),
  };
}
export const readText = (given: unknown): string => (typeof given === "string" ? given : "");
export const readFlag = (given: unknown): boolean => given === true;

export function isBusy(state: RunState): boolean {
  return state === "waiting" || state === "running";
}

/** A new token as the text components take tokens. */
export function asToken(token: NewToken): Token {
  return { id: token.id, text: token.text, bytes: token.bytes, special: token.special === true, start: 0, end: 0 };
}
