/** From a strength to a colour. */

export type PaletteName = "blue" | "orange" | "purple" | "grey";
export type Rgb = [red: number, green: number, blue: number];

/**
 * One hue each; opacity carries the strength. Text is never recoloured, so the full colour itself must leave it
 * readable: dark ink on `light`, white ink on `dark`, at least 4.5 to 1.
 */
export const PALETTES: Record<PaletteName, { light: Rgb; dark: Rgb }> = {
  blue: { light: [77, 148, 255], dark: [36, 99, 220] },
  orange: { light: [255, 145, 48], dark: [178, 84, 8] },
  purple: { light: [176, 130, 246], dark: [126, 74, 214] },
  grey: { light: [146, 152, 160], dark: [98, 104, 114] },
};

export const PALETTE_NAMES = Object.keys(PALETTES) as PaletteName[];

export function paletteOf(name: unknown): PaletteName {
  return PALETTE_NAMES.find((known) => known === name) ?? "blue";
}

/** Opacity of a bubble: 0 when inactive, 0.05 just above it, 1 at the feature's own maximum and beyond. */
export function opacity(strength: number): number {
  if (!(strength > 0)) return 0;
  return 0.05 + 0.95 * Math.log10(1 + 9 * Math.min(strength, 1));
}
