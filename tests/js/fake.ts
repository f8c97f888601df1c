/** Stand-ins for the kernel's half: wire values from dense ones, and a model that records what is sent. */

import type { Model } from "../../js/core/model";
import { Strengths, type WireMaxima } from "../../js/core/strengths";
import type { Token } from "../../js/core/token";
import { type Dtype, SparseActs, type WireActs, type WireArray } from "../../js/core/wire";

const TYPED = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array };

export function array(dtype: Exclude<Dtype, "f2">, values: number[]): WireArray {
  const bytes = TYPED[dtype].from(values);
  return { dtype, shape: [values.length], data: new DataView(bytes.buffer) };
}

export function wireActs(dense: number[][]): WireActs {
  const indptr = [0];
  const indices: number[] = [];
  const values: number[] = [];
  for (const row of dense) {
    row.forEach((value, feature) => {
      if (value > 0) {
        indices.push(feature);
        values.push(value);
      }
    });
    indptr.push(indices.length);
  }
  return {
    shape: [dense.length, dense[0]?.length ?? 0],
    indptr: array("u4", indptr),
    indices: array("u2", indices),
    values: array("f4", values),
    scale: 1,
  };
}

/** Known maxima by feature; the other features that are on in `dense` have none. */
export function wireMaxima(maxima: Record<number, number>, dense: number[][]): WireMaxima {
  const on = [...new SparseActs(wireActs(dense)).active()];
  return {
    values: array(
      "f4",
      on.map((feature) => (maxima[feature] ?? Number.NaN) / 2),
    ),
    scale: 2,
  };
}

export function token(text: string, more: Partial<Token> = {}): Token {
  return { id: 7, text, start: 0, end: text.length, special: false, ...more };
}

/** <bos> and four words; feature 0 is strongest on " City", feature 3 has no known maximum. */
export const DENSE = [
  [900, 0, 800, 50],
  [0, 0, 10, 0],
  [8, 0, 1, 0],
  [2, 0, 0, 5],
  [0, 0, 0, 0],
];
export const MAXIMA = { 0: 10, 2: 40 };

export function sampleState(): Record<string, unknown> {
  return {
    protocol: 1,
    about: { model: "tiny", scope: null, device: "cpu", dtype: "float32", note: "" },
    tokens: [token("<bos>", { special: true }), token("The"), token(" City"), token(" of"), token(" Light")],
    sites: ["res.5", "res.12"],
    site: "res.12",
    acts: wireActs(DENSE),
    maxima: wireMaxima(MAXIMA, DENSE),
    guesses: [[], [[" end", 0.5]], [[" of", 0.9]], [], [["<b>x</b>", 0.25]]],
    selection: { token: null, feature: null },
    palette: "blue",
    facts: null,
    fidelity: {
      site: "res.12",
      light: "green",
      reason: "40 features on per token",
      tokens: 20,
      l0: 40,
      declaredL0: 41,
      fvu: 0.2,
    },
  };
}

export function sampleStrengths(): Strengths {
  return new Strengths(new SparseActs(wireActs(DENSE)), wireMaxima(MAXIMA, DENSE), [true, false, false, false, false]);
}

export interface Sent {
  kind: "call" | "cancel";
  id: number;
  method: string;
  params: Record<string, unknown>;
}

export class FakeModel implements Model {
  readonly sent: Sent[] = [];
  readonly state: Record<string, unknown>;
  saves = 0;
  /** Answers calls by themselves, one microtask later. */
  answer: ((call: Sent) => unknown) | undefined;
  readonly #listeners = new Map<string, Set<(...args: never[]) => void>>();

  constructor(state: Record<string, unknown> = {}) {
    this.state = state;
  }
  get(name: string): unknown {
    return this.state[name];
  }
  set(name: string, value: unknown): void {
    this.state[name] = value;
    this.emit(`change:${name}`);
  }
  /** Several traits at once, as one message of the kernel sets them. */
  update(state: Record<string, unknown>): void {
    Object.assign(this.state, state);
    for (const name of Object.keys(state)) this.emit(`change:${name}`);
  }
  save_changes(): void {
    this.saves++;
  }
  send(content: unknown): void {
    const message = content as Sent;
    this.sent.push(message);
    if (message.kind !== "call" || !this.answer) return;
    queueMicrotask(() => this.reply({ kind: "value", id: message.id, value: this.answer?.(message) }));
  }
  reply(message: Record<string, unknown>): void {
    this.emit("msg:custom", message, []);
  }
  on(event: string, listener: (...args: never[]) => void): void {
    const known = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, known.add(listener));
  }
  off(event: string, listener: (...args: never[]) => void): void {
    this.#listeners.get(event)?.delete(listener);
  }
  emit(event: string, ...args: unknown[]): void {
    for (const listener of [...(this.#listeners.get(event) ?? [])]) listener(...(args as never[]));
  }
  listenerCount(): number {
    return [...this.#listeners.values()].reduce((total, set) => total + set.size, 0);
  }
  calls(method: string): Sent[] {
    return this.sent.filter((message) => message.kind === "call" && message.method === method);
  }
}

export function press(el: Element, key: string, more: KeyboardEventInit = {}): KeyboardEvent {
  const event = new KeyboardEvent("keydown", { key, bubbles: true, composed: true, cancelable: true, ...more });
  el.dispatchEvent(event);
  return event;
}

/** Enough turns of the event loop for promises and their followers. */
export async function settled(): Promise<void> {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setTimeout(resolve, 0));
}
