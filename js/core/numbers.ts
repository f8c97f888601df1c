/** Numbers as they are read. */

/** `value`, or the nearer end of the span. */
export function within(value: number, least: number, most: number): number {
  return Math.min(Math.max(value, least), most);
}

/** A strength in units of the feature's own maximum; "?" when that maximum is not known. */
export function strengthText(strength: number): string {
  if (Number.isNaN(strength)) return "?";
  return strength >= 9.995 ? strength.toFixed(1) : strength.toFixed(2);
}

export function rawText(raw: number): string {
  const size = Math.abs(raw);
  if (size >= 100) return raw.toFixed(0);
  return size >= 10 ? raw.toFixed(1) : raw.toFixed(2);
}

export function percentText(fraction: number): string {
  const percent = fraction * 100;
  if (percent === 0) return "0 %";
  if (percent < 0.001) return "<0.001 %";
  if (percent >= 99.95) return "100 %";
  return `${percent >= 10 ? percent.toFixed(0) : percent.toPrecision(2)} %`;
}
