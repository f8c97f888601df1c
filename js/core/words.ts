/**
 * What is read on the screen, in the user's language. The English text is the key, as in gettext, so that the source
 * reads as what it shows and a missing translation is English. No DOM and no Jupyter: the host says where words come
 * from, the widgets' from a trait, the sidebar's from JupyterLab's translation service.
 */

/** gettext's JSON form: the forms of each message, one where a language has no plural. */
export type Messages = Record<string, string[]>;
export type Values = Record<string, string | number>;

export interface Words {
  /** A language tag, as `lang` attributes have it. */
  language: string;
  /** The message in that language, or itself. `many` and `n` where it has a plural. */
  find(one: string, many?: string, n?: number): string;
}

export const ENGLISH: Words = { language: "en", find: (one, many, n) => (many !== undefined && n !== 1 ? many : one) };

let words = ENGLISH;

/** All that is drawn from now on is in these words. */
export function speak(given: Words): void {
  words = given;
}

/** The tag of the language spoken. */
export function spoken(): string {
  return words.language;
}

export function wordsOf(language: string, messages: Messages): Words {
  return {
    language,
    // Chinese, as the only language so far, has one form for all numbers.
    find: (one, many, n) => messages[one]?.[0] || ENGLISH.find(one, many, n),
  };
}

function fill(text: string, values: Values): string {
  return text.replace(/\{(\w+)\}/g, (placeholder, name) => String(values[name] ?? placeholder));
}

/** A text in the user's language, with `{name}` replaced by `values.name`. */
export function t(english: string, values: Values = {}): string {
  return fill(words.find(english), values);
}

/** The same for a number of things: `one` where n is 1, `many` elsewhere; `{n}` is the number. */
export function tn(one: string, many: string, n: number, values: Values = {}): string {
  return fill(words.find(one, many, n), { n, ...values });
}

/** Names a message in a constant, which is made before the language is known; `t` translates it where it is shown. */
export function mark(english: string): string {
  return english;
}
