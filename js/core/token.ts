/** Tokens, and the text they came from. */

export interface Token {
  id: number;
  /** Empty when the token is not whole characters; then `bytes` is set. */
  text: string;
  start: number;
  end: number;
  special: boolean;
  /** Hexadecimal. */
  bytes?: string;
}

/** A guess: a text and its probability. */
export type Guess = [text: string, probability: number];

export function hexBytes(hex: string): number[] {
  return (hex.match(/../g) ?? []).map((pair) => Number.parseInt(pair, 16));
}

/** The original text of a run of tokens: characters split over several tokens come together again. */
export function textOf(tokens: Token[]): string {
  const decoder = new TextDecoder();
  let text = "";
  let bytes: number[] = [];
  const flush = () => {
    text += decoder.decode(Uint8Array.from(bytes));
    bytes = [];
  };
  for (const token of tokens) {
    if (token.text === "" && token.bytes) bytes.push(...hexBytes(token.bytes));
    else {
      if (bytes.length) flush();
      text += token.text;
    }
  }
  if (bytes.length) flush();
  return text;
}
