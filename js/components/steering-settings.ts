/** How tokens are drawn, folded away. */

import type { Sampling } from "../core/desk";
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
  { name: "max_new_tokens", label: "tokens", hint: "how many new tokens at most", step: 1, least: 1 },
  { name: "temperature", label: "temperature", hint: "0 takes the likeliest token each time", step: 0.1, least: 0 },
  {
    name: "top_k",
    label: "top-k",
    hint: "draw from so many of the likeliest; empty: all",
    step: 1,
    least: 1,
    empty: null,
  },
  {
    name: "top_p",
    label: "top-p",
    hint: "draw from so much probability; empty: all",
    step: 0.05,
    least: 0,
    empty: null,
  },
  { name: "seed", label: "seed", hint: "the same seed gives the same text", step: 1, least: 0 },
];
const FOLLOW: [value: string, words: string][] = [
  ["restart", "starts the text over"],
  ["next", "applies from the next token on"],
  ["wait", "waits for Run"],
];

export interface SettingsCallbacks {
  onSampling(changes: Partial<Sampling>): void;
  onFollow(value: string): void;
  onChat(on: boolean): void;
  signal: AbortSignal;
}

export function steeringSettings({ onSampling, onFollow, onChat, signal }: SettingsCallbacks) {
  const summary = h("summary", { text: "sampling" });
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
    const input = h("input", { attrs: { type: "number", step, min: least, title: hint } });
    inputs.set(name, input);
    box.append(labelled(label, hint, input));
    input.addEventListener(
      "change",
      () => {
        if (input.value === "" && empty === undefined) input.value = String(sampling?.[name] ?? "");
        else onSampling({ [name]: input.value === "" ? null : input.valueAsNumber });
      },
      { signal },
    );
  }
  const follow = h("select", {}, ...FOLLOW.map(([value, words]) => h("option", { text: words, attrs: { value } })));
  follow.addEventListener("change", () => onFollow(follow.value), { signal });
  box.append(labelled("moving a slider", "what a changed edit does", follow));
  const chat = h("input", { attrs: { type: "checkbox" } });
  chat.addEventListener("change", () => onChat(chat.checked), { signal });
  box.append(labelled("chat", "the prompt is a message to an instruction-tuned model (-it)", chat));
  return {
    el,
    show(given: Sampling, how: string, chats: boolean, enabled: boolean): void {
      sampling = given;
      for (const [name, input] of inputs) {
        const value = given[name];
        if (!input.matches(":focus")) input.value = value === null ? "" : String(value);
        input.disabled = !enabled;
      }
      const heat = given.temperature > 0 ? `temperature ${given.temperature}, seed ${given.seed}` : "likeliest token";
      summary.textContent = `sampling: ${given.max_new_tokens} tokens, ${heat}`;
      follow.value = how;
      chat.checked = chats;
      follow.disabled = chat.disabled = !enabled;
    },
  };
}
