/** Values that change: local ones die with the view, shared ones live in the model. */

import type { Model } from "./model";

export interface Value<T> {
  get(): T;
  set(value: T): void;
  /** `listener` runs after every change, until `signal` aborts. */
  subscribe(listener: (value: T) => void, signal: AbortSignal): void;
}

/** For one view only: what the pointer is over. */
export function local<T>(initial: T): Value<T> {
  let value = initial;
  const listeners = new Set<(value: T) => void>();
  return {
    get: () => value,
    set(changed) {
      if (Object.is(changed, value)) return;
      value = changed;
      for (const listener of [...listeners]) listener(value);
    },
    subscribe(listener, signal) {
      if (signal.aborted) return;
      listeners.add(listener);
      signal.addEventListener("abort", () => listeners.delete(listener), { once: true });
    },
  };
}

/** A trait of the model: shared by its views and the kernel. `read` checks what came, since any host may have put it there. */
export function trait<T>(model: Model, name: string, read: (given: unknown) => T): Value<T> {
  return {
    get: () => read(model.get(name)),
    set(value) {
      model.set(name, value);
      model.save_changes();
    },
    subscribe(listener, signal) {
      if (signal.aborted) return;
      const changed = () => listener(read(model.get(name)));
      model.on(`change:${name}`, changed);
      signal.addEventListener("abort", () => model.off(`change:${name}`, changed), { once: true });
    },
  };
}
