/** A feature that a search found, as the kernel sends it. `null`: not known. */

export interface Hit {
  feature: string;
  label: string;
  /** Who gave the label: user, note, Neuronpedia, explained, automatic, or examples (tokens it fires on). */
  source: string;
  by: string;
  score: number | null;
  strength: number | null;
  raw: number | null;
  density: number | null;
  token: string;
  position: number | null;
  /** Of a contrast: "only a", "only b" or "changed". */
  group: string;
  a: [strength: number | null, raw: number | null];
  b: [strength: number | null, raw: number | null];
  words: string[];
  cosine: number | null;
}

export type Kind = "words" | "text" | "contrast" | "neighbours";

const KINDS: Kind[] = ["words", "text", "contrast", "neighbours"];

export function readKind(given: unknown): Kind {
  return KINDS.includes(given as Kind) ? (given as Kind) : "words";
}

export function readHits(given: unknown): Hit[] {
  return (Array.isArray(given) ? given : []).filter((one) => typeof one?.feature === "string") as Hit[];
}

/** The feature chosen in results. */
export interface Chosen {
  feature: string | null;
}

export function readChosen(given: unknown): Chosen {
  const { feature } = (given ?? {}) as Partial<Chosen>;
  return { feature: typeof feature === "string" ? feature : null };
}
