/** Notices a kernel that has stopped answering. */

import type { Rpc } from "./rpc";

export interface HeartbeatOptions {
  /** Whether anyone looks; a hidden view does not ask. */
  visible: () => boolean;
  onChange: (silent: boolean) => void;
  signal: AbortSignal;
  /** Milliseconds between two questions. */
  every?: number;
  /** Milliseconds without an answer before the kernel counts as silent. */
  patience?: number;
}

const TICK = 500;
/** An unanswered ping is given up after this, so that a busy kernel finds a handful of them in its queue, not hundreds. */
const GIVE_UP = 120_000;

export function heartbeat(rpc: Rpc, options: HeartbeatOptions): void {
  const { visible, onChange, signal, every = 10_000, patience = 5_000 } = options;
  let silent = false;
  let last = performance.now();
  let asking = false;
  const say = (now: boolean) => {
    if (now === silent) return;
    silent = now;
    onChange(now);
  };
  rpc.onAnswer(() => {
    last = performance.now();
    say(false);
  });
  const timer = setInterval(() => {
    if (rpc.waiting >= patience) say(true);
    if (!visible() || asking || performance.now() - last < every) return;
    asking = true;
    rpc
      .call("ping", {}, { signal, timeout: GIVE_UP })
      // Any answer, even an error, shows that somebody is there.
      .catch(() => undefined)
      .finally(() => {
        asking = false;
        last = performance.now();
      });
  }, TICK);
  signal.addEventListener("abort", () => clearInterval(timer), { once: true });
}
