/** How long things take is printed, not asserted: machines differ. */

import { expect, test } from "vitest";
import { tokenStrip } from "../../js/components/token-strip";
import { Strengths } from "../../js/core/strengths";
import { SparseActs, type WireActs } from "../../js/core/wire";
import { array, token } from "./fake";

const TOKENS = 1000;
const WIDTH = 16_384;
const ON = 80;

function timed<T>(name: string, work: () => T): T {
  const start = performance.now();
  const result = work();
  console.log(`${name.padEnd(52)} ${(performance.now() - start).toFixed(1)} ms`);
  return result;
}

test("1,000 tokens, 16,384 features, 80 on at each", () => {
  const step = WIDTH / ON;
  const indices = Array.from({ length: TOKENS * ON }, (_, i) => Math.floor((i % ON) * step + ((i * 7919) % step)));
  const wire: WireActs = {
    shape: [TOKENS, WIDTH],
    indptr: array(
      "u4",
      Array.from({ length: TOKENS + 1 }, (_, i) => i * ON),
    ),
    indices: array("u2", indices),
    values: array(
      "f4",
      Array.from({ length: TOKENS * ON }, (_, i) => 1 + (i % 97)),
    ),
    scale: 1,
  };
  const acts = timed("decode", () => new SparseActs(wire));
  const strengths = new Strengths(acts, null, Array(TOKENS).fill(false));
  timed("first column (builds all columns)", () => acts.column(indices[0]));
  timed("strongest feature of every token", () => strengths.strongest());
  timed("peaks of every feature", () => strengths.peaks());
  const strip = tokenStrip({ onHover() {}, onSelect() {}, signal: new AbortController().signal });
  document.body.append(strip.el);
  timed("draw the tokens (jsdom)", () => strip.setTokens(Array.from({ length: TOKENS }, () => token(" word"))));
  const shades = timed("shades of a feature", () => strengths.shades(indices[5]));
  timed("recolour (jsdom)", () => strip.colour(shades));
  expect(strip.at(TOKENS - 1)).toBeDefined();
});
