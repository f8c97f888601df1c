/** What a view shows: a text, and its features at one site. */

import type { Strengths } from "./strengths";
import type { Guess, Token } from "./token";

/** What made it. */
export interface About {
  model: string;
  scope: string | null;
  device: string;
  dtype: string;
  note: string;
}

export interface Picture {
  tokens: Token[];
  /** In forward order. */
  sites: string[];
  /** "" when no site is open. */
  site: string;
  strengths: Strengths | null;
  /** Per token, what the model expects after it, likeliest first. */
  guesses: Guess[][] | null;
  about: About;
  /** Whether there is a kernel to ask. */
  live: boolean;
}
