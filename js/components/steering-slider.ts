/** How strongly a feature is steered: a slider in units of its own maximum, and the same as a number. */

import type { Band, DoseRow } from "../core/desk";
import { keyed, placeOf, rounded, strengthAt } from "../core/dial";
import { strengthText } from "../core/numbers";
import { mark, t } from "../core/words";
import { h } from "./dom";
import "./steering-slider.css";

export interface SteeringSlider {
  el: HTMLElement;
  /** `unit` says what 1 is: "times the feature's own maximum". */
  show(strength: number, enabled: boolean, name: string, unit: string): void;
  /** What a sweep found at which strength: the track shows it. `null` takes it away. */
  bands(rows: Pick<DoseRow, "strength" | "band">[] | null): void;
}

const STEPS = 1000;
const TICKS = [-4, -2, -1, 0, 1, 2, 4];
const MEANING: Record<Band, string> = { none: mark("no effect"), works: mark("works"), breaks: mark("breaks") };

export function steeringSlider(onChange: (strength: number) => void, signal: AbortSignal): SteeringSlider {
  const track = h("div", { class: "gl-dial-bands", attrs: { "aria-hidden": "true" } });
  const slider = h("input", {
    class: "gl-dial-range",
    attrs: { type: "range", min: -STEPS, max: STEPS, step: 1, title: t("Arrows: 0.05 · Shift: 0.5 · Home End 0") },
  });
  // From zero to the value, not from the left: what is subtracted must not look like a little of something.
  const fill = h("span", { class: "gl-dial-fill" });
  const rail = h("div", { class: "gl-dial-rail", attrs: { "aria-hidden": "true" } }, fill);
  const ticks = h("div", { class: "gl-dial-ticks gl-quiet gl-number", attrs: { "aria-hidden": "true" } });
  for (const tick of TICKS) {
    const mark = h("span", { text: String(tick).replace("-", "−") });
    mark.style.left = `${50 + 50 * placeOf(tick)}%`;
    ticks.append(mark);
  }
  const number = h("input", { class: "gl-dial-number gl-number", attrs: { type: "number", step: 0.05 } });
  const el = h("div", { class: "gl-dial" }, h("div", { class: "gl-dial-track" }, rail, track, slider, ticks), number);
  let shown = 0;
  let unit = "";

  const put = (strength: number) => {
    shown = strength;
    const place = placeOf(strength);
    slider.value = String(Math.round(place * STEPS));
    fill.style.left = `${50 + 50 * Math.min(place, 0)}%`;
    fill.style.width = `${50 * Math.abs(place)}%`;
    slider.setAttribute("aria-valuetext", `${strengthText(strength)} ${unit}`);
    if (!number.matches(":focus") || Number(number.value) !== strength) number.value = String(rounded(strength));
  };
  slider.addEventListener(
    "input",
    () => {
      const strength = strengthAt(Number(slider.value) / STEPS);
      put(strength);
      onChange(strength);
    },
    { signal },
  );
  slider.addEventListener(
    "keydown",
    (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const strength = keyed(shown, event.key, event.shiftKey);
      if (strength === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      if (strength === shown) return;
      put(strength);
      onChange(strength);
    },
    { signal },
  );
  number.addEventListener(
    "change",
    () => {
      // An empty or half-typed field is no number: what held before comes back.
      if (number.value === "" || !Number.isFinite(number.valueAsNumber)) put(shown);
      else {
        put(number.valueAsNumber);
        onChange(shown);
      }
    },
    { signal },
  );
  return {
    el,
    show(strength, enabled, name, means) {
      slider.disabled = number.disabled = !enabled;
      el.classList.toggle("gl-dial-off", !enabled);
      slider.setAttribute("aria-label", t("Strength of {feature}", { feature: name }));
      number.setAttribute("aria-label", t("Strength of {feature} as a number", { feature: name }));
      if (strength === shown && number.value !== "" && means === unit) return;
      unit = means;
      put(strength);
    },
    bands(rows) {
      track.replaceChildren();
      if (!rows?.length) return;
      const sorted = [...rows].sort((a, b) => a.strength - b.strength);
      sorted.forEach(({ strength, band }, i) => {
        // Each measured strength speaks for half of the way to its neighbours.
        const at = placeOf(strength);
        const from = i === 0 ? at : (placeOf(sorted[i - 1].strength) + at) / 2;
        const to = i === sorted.length - 1 ? at : (placeOf(sorted[i + 1].strength) + at) / 2;
        const cell = h("span", { class: `gl-band gl-band-${band}`, attrs: { title: t(MEANING[band]) } });
        cell.style.left = `${50 + 50 * from}%`;
        cell.style.width = `${50 * (to - from)}%`;
        track.append(cell);
      });
    },
  };
}
