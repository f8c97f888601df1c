import { describe, expect, test } from "vitest";
import { percentText, rawText, strengthText } from "../../js/core/numbers";
import { fitted, hasGap, tokenName, visiblePieces, visibleText } from "../../js/core/text";
import { textOf } from "../../js/core/token";
import { token } from "./fake";

describe("visible text", () => {
  test.each([
    ["Paris", "Paris"],
    [" Paris", "␣Paris"],
    ["a b", "a b"],
    [" ", "␣"],
    ["   ", "␣␣␣"],
    [" ".repeat(14), "␣×14"],
    ["\n", "↵"],
    ["\n\n", "↵↵"],
    ["\t", "⇥"],
    ["\r\n", "␍↵"],
    ["\u0000", "⟨U+0000⟩"],
    ["\u202eabc", "⟨U+202E⟩abc"],
    ["\u200b", "⟨U+200B⟩"],
    ["\u00a0", "⟨U+00A0⟩"],
    ["\ufeff", "⟨U+FEFF⟩"],
    ["\u2066", "⟨U+2066⟩"],
    ["\u{e0041}", "⟨U+E0041⟩"],
    ["\ud83d", "⟨U+D83D⟩"],
    ["\u0301", "◌\u0301"],
    ["é", "é"],
    ["👩‍👩‍👧", "👩‍👩‍👧"],
    ["\u200d", "⟨U+200D⟩"],
    ["❤️", "❤️"],
    ["<b>&amp;", "<b>&amp;"],
  ])("%j is shown as %s", (text, shown) => expect(visibleText(text)).toBe(shown));

  test("a leading space can be left to a gap", () => {
    expect(visiblePieces(" Paris", true)).toEqual([{ kind: "text", text: "Paris" }]);
    expect(visiblePieces("  Paris", true)).toEqual([
      { kind: "mark", text: "␣␣" },
      { kind: "text", text: "Paris" },
    ]);
    expect([" a", " ", "  a", "a", " \n"].map(hasGap)).toEqual([true, false, false, false, false]);
  });
  test("parts of a character are shown as bytes", () => {
    expect(tokenName(token("", { bytes: "f09f" }))).toBe("⟨F0⟩⟨9F⟩");
  });
});

describe("the text of tokens", () => {
  test("joins characters that were split over tokens", () => {
    const parts = [token("a "), token("", { bytes: "f09f" }), token("", { bytes: "a6a5" }), token("!")];
    expect(textOf(parts)).toBe("a 🦥!");
  });
});

describe("numbers", () => {
  test("strengths", () =>
    expect([0, 0.004, 0.824, 1.5, 12.34, Number.NaN].map(strengthText)).toEqual([
      "0.00",
      "0.00",
      "0.82",
      "1.50",
      "12.3",
      "?",
    ]));
  test("raw values", () => expect([0.5, 12.34, 1234.5].map(rawText)).toEqual(["0.50", "12.3", "1235"]));
  test("shares", () =>
    expect([0, 0.000001, 0.00034, 0.0123, 0.5, 1].map(percentText)).toEqual([
      "0 %",
      "<0.001 %",
      "0.034 %",
      "1.2 %",
      "50 %",
      "100 %",
    ]));
});

test.each([
  ["names of cities", 20, "names of cities"],
  ["names of cities", 15, "names of cities"],
  ["names of cities", 14, "names of citi…"],
  ["激活于许多词元", 14, "激活于许多词元"],
  ["激活于许多词元", 13, "激活于许多词…"],
  ["激活于 “Paris”", 9, "激活于 “…"],
  ["", 5, ""],
])("%s fits into the room of %i letters as %s", (text, room, shown) => {
  expect(fitted(text, room)).toBe(shown);
});
