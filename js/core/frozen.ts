/** A model made from a saved state: what it can answer it answers, the rest needs a kernel. */

import type { Facts } from "./feature";
import type { Model } from "./model";
import { t } from "./words";

interface SavedArray {
  dtype: string;
  shape: number[];
  base64: string;
}

function isSavedArray(value: object): value is SavedArray {
  return "base64" in value && typeof value.base64 === "string" && "dtype" in value;
}

function fromBase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** A copy of a saved state in which arrays have bytes again. */
export function thaw(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(thaw);
  if (typeof value !== "object" || value === null) return value;
  if (isSavedArray(value)) return { dtype: value.dtype, shape: value.shape, data: fromBase64(value.base64) };
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, thaw(part)]));
}

export function frozenModel(saved: Record<string, unknown>): Model {
  const state = thaw(saved) as Record<string, unknown>;
  state.facts ??= {};
  const facts = state.facts as Record<string, Facts>;
  const listeners = new Map<string, Set<(...args: unknown[]) => void>>();
  const emit = (event: string, ...args: unknown[]) => {
    for (const listener of [...(listeners.get(event) ?? [])]) listener(...args);
  };
  const answer = (id: number, method: string, params: Record<string, unknown>) => {
    if (method === "facts" && params.site === state.site) {
      const asked = (params.features as number[]).filter((feature) => facts[feature] !== undefined);
      return { kind: "value", id, value: Object.fromEntries(asked.map((feature) => [feature, facts[feature]])) };
    }
    return { kind: "error", id, code: "needs-kernel", message: t("This is a saved picture: that needs a kernel.") };
  };
  return {
    get: (name) => state[name],
    set(name, value) {
      state[name] = value;
      emit(`change:${name}`);
    },
    save_changes() {},
    send(content) {
      const { kind, id, method, params } = content as {
        kind: string;
        id: number;
        method: string;
        params: Record<string, unknown>;
      };
      // Later, as from a kernel: the caller has not yet noted that it waits.
      if (kind === "call") queueMicrotask(() => emit("msg:custom", answer(id, method, params), []));
    },
    on(event, listener) {
      const known = listeners.get(event) ?? new Set();
      listeners.set(event, known);
      known.add(listener as (...args: unknown[]) => void);
    },
    off(event, listener) {
      listeners.get(event)?.delete(listener as (...args: unknown[]) => void);
    },
  };
}
