/** How a token's text is made visible: nothing in it may hide, or change how its neighbours look. */

import { hexBytes, type Token } from "./token";

export interface Piece {
  /** "text" is drawn as it is, "mark" stands for a character that cannot be seen. */
  kind: "text" | "mark";
  text: string;
}

/** Characters without ink, and those that reorder what follows. U+2800 is a blank braille cell. */
const UNSEEN = /[\p{Cc}\p{Cs}\p{Co}\p{Z}\p{Default_Ignorable_Code_Point}\u2800\ufff9-\ufffb]/u;
const EMOJI = /\p{Extended_Pictographic}|\p{Emoji_Modifier}|\p{Regional_Indicator}|\ufe0f|\u20e3/u;
const COMBINING = /^\p{M}/u;
const JOINER = "\u200d";
const EMOJI_STYLE = "\ufe0f";

function codepoint(character: string): string {
  return `⟨U+${(character.codePointAt(0) as number).toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

/**
 * A text as pieces to draw, in order. A single leading space is left out when `gap` is true: the caller draws it as a gap.
 */
export function visiblePieces(text: string, gap = false): Piece[] {
  const pieces: Piece[] = [];
  const put = (kind: Piece["kind"], part: string) => {
    const last = pieces.at(-1);
    if (last?.kind === kind) last.text += part;
    else pieces.push({ kind, text: part });
  };
  const characters = [...text];
  const skip = gap && hasGap(text) ? 1 : 0;
  const inside = text.trim() !== "";
  for (let i = skip; i < characters.length; i++) {
    const character = characters[i];
    const before = characters[i - 1] ?? "";
    if (character === " ") {
      const atEdge = !inside || i === 0 || i === characters.length - 1 || before === " " || characters[i + 1] === " ";
      put(atEdge ? "mark" : "text", atEdge ? "␣" : " ");
    } else if (character === "\n") put("mark", "↵");
    else if (character === "\r") put("mark", "␍");
    else if (character === "\t") put("mark", "⇥");
    else if (character === JOINER && EMOJI.test(before) && EMOJI.test(characters[i + 1] ?? "")) put("text", character);
    else if (character === EMOJI_STYLE && /\p{Emoji}/u.test(before)) put("text", character);
    else if (UNSEEN.test(character)) put("mark", codepoint(character));
    else if (i === skip && COMBINING.test(character)) put("text", `◌${character}`);
    else put("text", character);
  }
  return shortened(pieces);
}

/** Indentation of many spaces would push the text off the page: ␣×24 says the same. */
function shortened(pieces: Piece[]): Piece[] {
  for (const piece of pieces)
    if (piece.kind === "mark") piece.text = piece.text.replace(/␣{5,}/g, (run) => `␣×${run.length}`);
  return pieces;
}

/** Whether a token is one space and then something to see, which is drawn as a gap before the word. */
export function hasGap(text: string): boolean {
  return /^ [^\s]/u.test(text);
}

/** Byte tokens as ⟨F0⟩⟨9F⟩. */
export function bytePieces(hex: string): Piece[] {
  const text = hexBytes(hex)
    .map((byte) => `⟨${byte.toString(16).toUpperCase().padStart(2, "0")}⟩`)
    .join("");
  return [{ kind: "mark", text }];
}

export function tokenPieces(token: Token, gap = false): Piece[] {
  if (token.text === "" && token.bytes) return bytePieces(token.bytes);
  return visiblePieces(token.text, gap);
}

/** One line of plain text that shows everything: " Paris" as "␣Paris". */
export function visibleText(text: string): string {
  return visiblePieces(text)
    .map((piece) => piece.text)
    .join("");
}

export function tokenName(token: Token): string {
  return tokenPieces(token)
    .map((piece) => piece.text)
    .join("");
}

const WIDE = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\u3000-\u303f\uff01-\uff60]/u;

const roomOf = (text: string) => [...text].reduce((sum, letter) => sum + (WIDE.test(letter) ? 2 : 1), 0);

/** A text cut to so many letters' room; a Chinese, Japanese or Korean one takes that of two. */
export function fitted(text: string, room: number): string {
  if (roomOf(text) <= room) return text;
  const letters = [...text];
  while (letters.length && roomOf(letters.join("")) > room - 1) letters.pop();
  return `${letters.join("")}…`;
}
