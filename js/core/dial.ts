/** The slider's scale: strength is a symmetric square of the place, so that half of the way is for 0 to 1. */

export const REACH = 4;
const POWER = 2;

/** Strength at a place from -1 to 1, to two digits. */
export function strengthAt(place: number): number {
  const size = Math.min(Math.abs(place), 1) ** POWER * REACH;
  return rounded(place < 0 ? -size : size);
}

/** Place of a strength, from -1 to 1; beyond the slider's reach it is at its end. */
export function placeOf(strength: number): number {
  if (!Number.isFinite(strength)) return 0;
  const size = Math.min(Math.abs(strength) / REACH, 1) ** (1 / POWER);
  return strength < 0 ? -size : size;
}

/** Two digits; never -0. */
export function rounded(strength: number): number {
  return Math.round(strength * 100) / 100 || 0;
}

/** Where a key takes the slider, or undefined if it is no key of the slider's. */
export function keyed(strength: number, key: string, shift: boolean): number | undefined {
  const step = shift ? 0.5 : 0.05;
  const to: Record<string, number> = {
    ArrowLeft: strength - step,
    ArrowDown: strength - step,
    ArrowRight: strength + step,
    ArrowUp: strength + step,
    PageDown: strength - 1,
    PageUp: strength + 1,
    Home: -REACH,
    End: REACH,
    "0": 0,
  };
  if (!Object.hasOwn(to, key)) return undefined;
  return rounded(Math.min(Math.max(to[key], -REACH), REACH));
}
