/** A feature's name: `res.12/834`. */

export interface Feature {
  site: string;
  index: number;
}

export function parseFeature(name: string | null | undefined): Feature | null {
  const match = /^([a-z]+\.\d+)\/(\d+)$/.exec(name ?? "");
  return match ? { site: match[1], index: Number(match[2]) } : null;
}

export function featureName(site: string, index: number): string {
  return `${site}/${index}`;
}

/** What is known of a feature apart from this text. `null`: not known. */
export interface Facts {
  density: number | null;
  maximum: number | null;
  mean: number | null;
  promotes: [text: string, logit: number][];
  suppresses: [text: string, logit: number][];
  /** What someone says it is about; missing where nobody did. */
  label?: string;
}

export interface Selection {
  token: number | null;
  feature: string | null;
}

export const NOTHING: Selection = { token: null, feature: null };
