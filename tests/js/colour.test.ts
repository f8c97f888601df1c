import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { opacity, PALETTE_NAMES, PALETTES, paletteOf, type Rgb } from "../../js/core/colour";

const golden = JSON.parse(readFileSync("tests/wire/colour.json", "utf8")) as { strength: number[]; opacity: number[] };

describe("opacity", () => {
  test("is the kernel's", () => {
    golden.strength.forEach((strength, i) => {
      expect(opacity(strength)).toBeCloseTo(golden.opacity[i], 9);
    });
  });
  test("off is no colour, just on is some, the maximum and beyond is all", () => {
    expect(opacity(0)).toBe(0);
    expect(opacity(1e-9)).toBeCloseTo(0.05, 6);
    expect(opacity(1)).toBe(1);
    expect(opacity(3)).toBe(1);
    expect(opacity(Number.NaN)).toBe(0);
  });
});

const channel = (value: number) => (value <= 10 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
const luminance = (rgb: Rgb) =>
  rgb.map(channel).reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
const mix = (over: Rgb, under: Rgb, alpha: number) =>
  over.map((value, i) => value * alpha + under[i] * (1 - alpha)) as Rgb;
const contrast = (a: Rgb, b: Rgb) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};

describe("palettes", () => {
  test("are the kernel's on a light page", () => {
    const kernel = readFileSync("py_src/gemloupe/widgets/colour.py", "utf8");
    const named = [...kernel.matchAll(/"(\w+)": \((\d+), (\d+), (\d+)\)/g)].map(([, name, ...rgb]) => [
      name,
      rgb.map(Number),
    ]);
    expect(named).toEqual(PALETTE_NAMES.map((name) => [name, PALETTES[name].light]));
  });
  test("an unknown name is blue", () => expect(paletteOf("pink")).toBe("blue"));
  const shades = [0, 0.05, 0.3, 0.6, 1];
  test.each(PALETTE_NAMES)("text on %s can be read in both themes", (name) => {
    for (const shade of shades) {
      const light = mix(PALETTES[name].light, [255, 255, 255], shade);
      // JupyterLab's light text is black at 87 %.
      expect(contrast(mix([0, 0, 0], light, 0.87), light)).toBeGreaterThanOrEqual(4.5);
      const dark = mix(PALETTES[name].dark, [17, 17, 17], shade);
      expect(contrast([255, 255, 255], dark)).toBeGreaterThanOrEqual(4.5);
    }
  });
});
