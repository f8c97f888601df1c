/** Feature facts, asked for once. */

import type { Facts } from "./feature";
import type { Rpc } from "./rpc";

export class FactsCache {
  readonly #rpc: Rpc;
  readonly #known = new Map<string, Map<number, Facts>>();

  constructor(rpc: Rpc) {
    this.#rpc = rpc;
  }

  get(site: string, feature: number): Facts | undefined {
    return this.#known.get(site)?.get(feature);
  }

  /** Resolves when all of `features` are known, or the kernel has none for them. */
  async want(site: string, features: number[], signal: AbortSignal): Promise<void> {
    const missing = features.filter((feature) => this.get(site, feature) === undefined);
    if (!missing.length) return;
    const found = await this.#rpc.call<Record<string, Facts>>("facts", { site, features: missing }, { signal });
    const known = this.#known.get(site) ?? new Map<number, Facts>();
    this.#known.set(site, known);
    for (const [feature, facts] of Object.entries(found ?? {})) known.set(Number(feature), facts);
  }
}
