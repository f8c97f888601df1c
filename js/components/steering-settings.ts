/** How tokens are drawn, folded away. */

import type { Sampling } from "../core/desk";
import { mark, t } from "../core/words";
import { freshId, h } from "./dom";

interface Field {
  name: keyof Sampling;
  label: string;
  hint: string;
  step: number;
  least: number;
  /** What an empty field means, or undefined when it may not be empty. */
  empty?: null;
}

const FIELDS: Field[] = [
  { name: "max_new_tokens", label: mark("tokens"), hint: mark("how many new tokens at most"), step: 1, least: 1 },
  {
    name: "temperature",
    label: mark("temperature"),
    hint: mark("0 takes the likeliest token each time"),
    step: 0.1,
    least: 0,
  },
  {
    name: "top_k",
    label: "top-k",
    hint: mark("draw from so many of the likeliest; empty: all"),
    step: 1,
    least: 1,
    empty: null,
  },
  {
    name: "top_p",
    label: "top-p",
    hint: mark("draw from so much probability; empty: all"),
    step: 0.05,
    least: 0,
    empty: null,
  },
  { name: "seed", label: mark("seed"), hint: mark("the same seed gives the same text"), step: 1, least: 0 },
];
const FOLLOW: [value: string, words: string][] = [
  ["restart", mark("starts the text over")],
  ["next", mark("applies from the next token on")],
  ["wait", mark("waits for Run")],
];

export interface SettingsCallbacks {
  onSampling(changes: Partial<Sampling>): void;
  onFollow(value: string): void;
  onChat(on: boolean): void;
  signal: AbortSignal;
}

export function steeringSettings({ onSampling, onFollow, onChat, signal }: SettingsCallbacks) {
  const summary = h("summary", { text: t("sampling") });
  const box = h("div", { class: "gl-settings-fields" });
  const el = h("details", { class: "gl-settings" }, summary, box);
  const inputs = new Map<keyof Sampling, HTMLInputElement>();
  let sampling: Sampling | null = null;
  const labelled = (label: string, hint: string, input: HTMLElement): HTMLElement => {
    input.id = freshId("setting");
    return h(
      "span",
      { class: "gl-setting" },
      h("label", { text: label, attrs: { for: input.id, title: hint } }),
      input,
    );
  };
  for (const { name, label, hint, step, least, empty } of FIELDS) {
    const input = h("input", { attrs: { type: "number", step, min: least, title: t(hint) } });
    inputs.set(name, input);
    box.append(labelled(t(label), t(hint), input));
    input.addEventListener(
      "change",
      () => {
        if (input.value === "" && empty === undefined) input.value = String(sampling?.[name] ?? "");
        else onSampling({ [name]: input.value === "" ? null : input.valueAsNumber });
      },
      { signal },
    );
  }
  const follow = h("select", {}, ...FOLLOW.map(([value, words]) => h("option", { text: t(words), attrs: { value } })));
  follow.addEventListener("change", () => onFollow(follow.value), { signal });
  box.append(labelled(t("moving a slider"), t("what a changed edit does"), follow));
  const chat = h("input", { attrs: { type: "checkbox" } });
  chat.addEventListener("change", () => onChat(chat.checked), { signal });
  box.append(labelled(t("chat"), t("the prompt is a message to an instruction-tuned model (-it)"), chat));
  return {
    el,
    show(given: Sampling, how: string, chats: boolean, enabled: boolean): void {
      sampling = given;
      for (const [name, input] of inputs) {
        const value = given[name];
        if (!input.matches(":focus")) input.value = value === null ? "" : String(value);
        input.disabled = !enabled;
      }
      const heat =
        given.temperature > 0
          ? t("temperature {temperature}, seed {seed}", { temperature: given.temperature, seed: given.seed })
          : t("likeliest token");
      summary.textContent = t("sampling: {n} tokens, {how}", { n: given.max_new_tokens, how: heat });
      follow.value = how;
      chat.checked = chats;
      follow.disabled = chat.disabled = !enabled;
    },
  };
}
