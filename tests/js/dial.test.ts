import { describe, expect, test } from "vitest";
import { divergence } from "../../js/components/desk";
import { keyed, placeOf, REACH, strengthAt } from "../../js/core/dial";
import { wordDiff, words } from "../../js/core/word-diff";

describe("the slider's scale", () => {
  test("is symmetric, monotonic, fine near zero and ends at the reach", () => {
    expect([-1, 0, 0.5, 1, 9].map(strengthAt)).toEqual([-REACH, 0, 1, REACH, REACH]);
    expect(Object.is(strengthAt(-0.001), 0)).toBe(true);
    let last = -Infinity;
    for (let place = -1; place <= 1; place += 0.01) {
      expect(strengthAt(place)).toBeGreaterThanOrEqual(last);
      expect(strengthAt(-place)).toBeCloseTo(-strengthAt(place), 10);
      last = strengthAt(place);
    }
    expect(strengthAt(0.1)).toBe(0.04);
  });
  test("goes there and back", () => {
    for (const strength of [-4, -1.5, -0.25, 0, 0.04, 0.5, 1, 2.25, 4])
      expect(strengthAt(placeOf(strength))).toBe(strength);
    expect([placeOf(100), placeOf(-100), placeOf(Number.NaN)]).toEqual([1, -1, 0]);
  });
  test("keys stay within the reach", () => {
    expect(keyed(3.9, "ArrowRight", true)).toBe(4);
    expect(keyed(-3.9, "PageDown", false)).toBe(-4);
    expect(keyed(0.05, "ArrowLeft", false)).toBe(0);
    expect(keyed(1, "x", false)).toBeUndefined();
    expect(keyed(1, "toString", false)).toBeUndefined();
  });
});

describe("word by word", () => {
  const shown = (before: string, after: string) =>
    wordDiff(before, after).map(({ kind, text }) => `${{ same: "=", gone: "-", new: "+" }[kind]}${text}`);
  test.each([
    ["", "", []],
    ["a b", "a b", ["=a b"]],
    ["a b c", "a x c", ["=a", "- b", "+ x", "= c"]],
    ["a", "a b", ["=a", "+ b"]],
    ["a b", "b", ["-a", "=b"]],
    ["", "new", ["+new"]],
    ["old", "", ["-old"]],
    ["你好 世界", "你好 朋友", ["=你好", "- 世界", "+ 朋友"]],
  ])("%j and %j", (before, after, expected) => {
    expect(shown(before, after)).toEqual(expected);
  });
  test("each side can be read back", () => {
    const texts = ["the sea the sea was blue ", "a sea\n\nwas the  sea", "", "  x", "one two three four five"];
    for (const before of texts)
      for (const after of texts) {
        const parts = wordDiff(before, after);
        const side = (left: string) => parts.filter(({ kind }) => kind !== left).map(({ text }) => text);
        expect(side("gone").join("")).toBe(after);
        expect(words(side("new").join("")).map((w) => w.trim())).toEqual(words(before).map((w) => w.trim()));
      }
  });
});

test("texts diverge at their first other token, and not where one is only shorter so far", () => {
  const of = (...ids: number[]) => ids.map((id) => ({ id, text: "x", logprob: null }));
  expect(divergence(of(1, 2, 3), of(1, 5, 3))).toBe(1);
  expect(divergence(of(1, 2, 3), of(1, 2))).toBeNull();
  expect(divergence([], of(1))).toBeNull();
});
