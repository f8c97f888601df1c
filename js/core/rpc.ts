/** Questions to the kernel: every call ends once, as a value, an error or a cancellation. */

import type { Model } from "./model";

export class RpcError extends Error {
  readonly code: string;
  constructor(code: string, message: string) {
    super(message);
    this.name = "RpcError";
    this.code = code;
  }
}

export interface CallOptions {
  signal?: AbortSignal;
  /** Milliseconds after which the caller gives up. */
  timeout?: number;
}

interface Reply {
  kind: "value" | "error" | "cancelled";
  id: number;
  value?: unknown;
  code?: string;
  message?: string;
}

interface Pending {
  settle(reply: Reply, buffers: DataView[]): void;
  since: number;
}

/** Replies reach every view and every browser that shows the model, so ids must not meet. */
let next = Math.floor(Math.random() * 2 ** 32) * 2 ** 20;

function isReply(message: unknown): message is Reply {
  if (typeof message !== "object" || message === null) return false;
  const { kind, id } = message as Partial<Reply>;
  return typeof id === "number" && (kind === "value" || kind === "error" || kind === "cancelled");
}

export class Rpc {
  readonly #model: Model;
  readonly #pending = new Map<number, Pending>();
  readonly #heard = new Set<() => void>();
  readonly #life: AbortSignal;

  /** `signal` ends the view: what is still open is cancelled. */
  constructor(model: Model, signal: AbortSignal) {
    this.#model = model;
    this.#life = signal;
    const listen = (message: unknown, buffers?: DataView[]) => {
      if (!isReply(message)) return;
      for (const listener of this.#heard) listener();
      const pending = this.#pending.get(message.id);
      this.#pending.delete(message.id);
      pending?.settle(message, buffers ?? []);
    };
    model.on("msg:custom", listen);
    signal.addEventListener("abort", () => model.off("msg:custom", listen), { once: true });
  }

  /** Milliseconds that the oldest open call has waited; 0 when none is open. */
  get waiting(): number {
    let since = Number.POSITIVE_INFINITY;
    for (const pending of this.#pending.values()) since = Math.min(since, pending.since);
    return this.#pending.size ? performance.now() - since : 0;
  }

  /** Whether a call is open. */
  get busy(): boolean {
    return this.#pending.size > 0;
  }

  /** `listener` runs at every answer of the kernel, to whomever. */
  onAnswer(listener: () => void): void {
    this.#heard.add(listener);
    this.#life.addEventListener("abort", () => this.#heard.delete(listener), { once: true });
  }

  call<T>(method: string, params: Record<string, unknown> = {}, { signal, timeout }: CallOptions = {}): Promise<T> {
    const id = ++next;
    return new Promise<T>((resolve, reject) => {
      const end = new AbortController();
      let timer: ReturnType<typeof setTimeout> | undefined;
      const finish = () => {
        this.#pending.delete(id);
        end.abort();
        clearTimeout(timer);
      };
      const giveUp = (reason: unknown) => {
        finish();
        this.#send({ kind: "cancel", id });
        reject(reason);
      };
      const abort = () => giveUp(new DOMException(`call "${method}" was cancelled`, "AbortError"));
      if (signal?.aborted || this.#life.aborted) {
        reject(new DOMException(`call "${method}" was cancelled`, "AbortError"));
        return;
      }
      signal?.addEventListener("abort", abort, { once: true, signal: end.signal });
      this.#life.addEventListener("abort", abort, { once: true, signal: end.signal });
      if (timeout !== undefined)
        timer = setTimeout(
          () => giveUp(new RpcError("timeout", `the kernel did not answer "${method}" within ${timeout / 1000} s`)),
          timeout,
        );
      this.#pending.set(id, {
        since: performance.now(),
        settle: (reply) => {
          finish();
          if (reply.kind === "value") resolve(reply.value as T);
          else if (reply.kind === "error") reject(new RpcError(reply.code ?? "error", reply.message ?? "no message"));
          else reject(new DOMException(`call "${method}" was cancelled`, "AbortError"));
        },
      });
      this.#send({ kind: "call", id, method, params });
    });
  }

  /** A host whose connection is gone may throw; the caller then waits, as with any kernel that does not answer. */
  #send(message: Record<string, unknown>): void {
    try {
      this.#model.send(message);
    } catch (error) {
      console.warn("gemloupe: a message to the kernel could not be sent", error);
    }
  }
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}
