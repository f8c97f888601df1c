import { describe, expect, test } from "vitest";
import { Strengths } from "../../js/core/strengths";
import { SparseActs } from "../../js/core/wire";
import { DENSE, MAXIMA, sampleStrengths, wireActs, wireMaxima } from "./fake";

describe("strengths", () => {
  const strengths = sampleStrengths();

  test("are in units of the feature's own maximum", () => {
    expect(strengths.at(2).map(({ feature, raw, strength }) => [feature, raw, strength])).toEqual([
      [0, 8, 0.8],
      [2, 1, expect.closeTo(0.025)],
    ]);
  });
  test("are unknown without a maximum, and then shaded by the largest value in the text", () => {
    const [first] = strengths.at(3);
    expect(first).toMatchObject({ feature: 3, raw: 5, strength: Number.NaN, shade: 1 });
    expect(strengths.someUnknown).toBe(true);
  });
  test("leave special tokens out: no colour, no list, no scale", () => {
    expect(strengths.at(0)).toEqual([]);
    expect(strengths.shades(0)[0]).toBe(0);
    expect(strengths.strongest()[0]).toBe(0);
    expect(strengths.scale(3)).toBe(5);
    expect(strengths.peaks().every(({ token }) => token !== 0)).toBe(true);
  });
  test("shades of a feature at every token", () => {
    expect([...strengths.shades(0)].map((value) => value.toFixed(2))).toEqual(["0.00", "0.00", "0.80", "0.20", "0.00"]);
    expect([...strengths.shades(1)]).toEqual([0, 0, 0, 0, 0]);
  });
  test("the strongest at every token", () => {
    expect([...strengths.strongest()].map((value) => value.toFixed(2))).toEqual([
      "0.00",
      "0.25",
      "0.80",
      "1.00",
      "0.00",
    ]);
  });
  test("peaks name the token, the strongest first", () => {
    expect(strengths.peaks().map(({ feature, token, raw }) => [feature, token, raw])).toEqual([
      [3, 3, 5],
      [0, 2, 8],
      [2, 1, 10],
    ]);
  });
  test("maxima of other activations are refused, not misread", () => {
    const others = wireMaxima(MAXIMA, [[1, 1, 1, 1]]);
    expect(() => new Strengths(new SparseActs(wireActs(DENSE)), others, [])).toThrow("do not belong");
  });
});
