/** How well the SAE shown fits the text, as the kernel measured it. */

export const LIGHTS = ["green", "amber", "red", "unknown"] as const;
export type Light = (typeof LIGHTS)[number];

export interface Fidelity {
  site: string;
  light: Light;
  /** Why, in words. */
  reason: string;
  tokens: number;
  l0: number;
  declaredL0: number | null;
  fvu: number | null;
}

/** What came over the wire, or null if it is not that. */
export function readFidelity(given: unknown): Fidelity | null {
  if (typeof given !== "object" || given === null) return null;
  const one = given as Fidelity;
  const good = typeof one.site === "string" && LIGHTS.includes(one.light) && typeof one.reason === "string";
  return good ? one : null;
}
