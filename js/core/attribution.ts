/** Which features led to a feature or a next token, as the kernel found it. Any host may have put anything there. */

export interface Edge {
  feature: string;
  position: number;
  /** Activation times gradient, in the target's unit. */
  effect: number;
  /** What the target lost when the feature was taken out; null where that was not measured. */
  measured: number | null;
  raw: number;
  /** In units of the feature's own maximum; null where that is not known. */
  strength: number | null;
}

export interface Attribution {
  /** A feature's name, or the text of a next token. */
  target: { feature: string | null; token: number | null; text: string };
  position: number;
  value: number;
  /** Strongest first. */
  edges: Edge[];
  /** How many effects there were, before the weaker ones were left out. */
  effects: number;
  explained: number;
  error: number;
  notes: string[];
}

export function readAttribution(given: unknown): Attribution | null {
  if (typeof given !== "object" || given === null) return null;
  const one = given as Partial<Attribution>;
  if (!Array.isArray(one.edges) || typeof one.position !== "number" || !one.target) return null;
  const edges = one.edges.filter((edge) => typeof edge?.feature === "string" && Number.isFinite(edge.effect));
  return {
    value: Number.NaN,
    effects: edges.length,
    explained: Number.NaN,
    error: Number.NaN,
    notes: [],
    ...one,
    edges,
  } as Attribution;
}

/** The edges that start at a token, by feature. */
export function edgesAt(found: Attribution | null, position: number): Map<string, Edge> {
  const at = (found?.edges ?? []).filter((edge) => edge.position === position);
  return new Map(at.map((edge) => [edge.feature, edge]));
}

/** Per token, the share of the shown effects that start there, the largest being 1. */
export function effectsByToken(found: Attribution, tokens: number): Float32Array {
  const sums = new Float32Array(tokens);
  for (const { position, effect } of found.edges) if (position < tokens) sums[position] += Math.abs(effect);
  const most = Math.max(...sums, 0);
  return most > 0 ? sums.map((sum) => sum / most) : sums;
}
