/** Steering, for any host of anywidgets. */

import { desk } from "../components/desk";
import { paletteOf } from "../core/colour";
import { readColour, readDose, readFlag, readRows, readRun, readSampling, readText, readTurns } from "../core/desk";
import { heartbeat } from "../core/heartbeat";
import { type Model, PROTOCOL } from "../core/model";
import type { About } from "../core/picture";
import { isAbort, Rpc } from "../core/rpc";
import { trait } from "../core/synced";
import { t } from "../core/words";
import { isLive, OTHER_VERSION, type RenderProps, SILENT } from "./_connect";
import { inLanguage } from "./_language";
import { mount } from "./_static";

/** How long nobody may look before a run is given up: a cell that is moved loses its view for a moment. */
const LEFT = 1500;
const views = new WeakMap<Model, number>();

function draw({ model, el, signal }: RenderProps): void {
  const rpc = new Rpc(model, signal);
  const live = isLive(model) && model.get("protocol") === PROTOCOL;
  const view = desk({
    values: {
      about: trait(model, "about", (given) => given as About),
      prompt: trait(model, "prompt", readText),
      chat: trait(model, "chat", readFlag),
      turns: trait(model, "turns", readTurns),
      rows: trait(model, "rows", readRows),
      sampling: trait(model, "sampling", readSampling),
      follow: trait(model, "follow", readText),
      controls: trait(model, "controls", readFlag),
      current: trait(model, "current", readRun),
      dose: trait(model, "dose", readDose),
      colour: trait(model, "colour", readColour),
      notes: trait(model, "notes", (given) => (Array.isArray(given) ? given.map(String) : [])),
      palette: trait(model, "palette", paletteOf),
    },
    call: (method, params = {}) => rpc.call(method, params, { signal }),
    onError(subject, error) {
      if (isAbort(error)) return;
      if (error !== null && error !== undefined) console.warn("gemloupe:", error);
      view.banner.say(subject, error === null ? null : error instanceof Error ? error.message : String(error));
    },
    live,
    signal,
  });
  el.append(view.el);
  if (isLive(model) && !live) view.banner.say("version", t(OTHER_VERSION));
  signal.addEventListener("abort", () => view.el.remove(), { once: true });
  if (!live) return;
  heartbeat(rpc, {
    visible: () => document.visibilityState === "visible" && view.el.getClientRects().length > 0,
    onChange(silent) {
      view.banner.say("silent", silent ? t(SILENT) : null);
      view.silent(silent);
    },
    signal,
  });
  views.set(model, (views.get(model) ?? 0) + 1);
  signal.addEventListener("abort", () => {
    const left = (views.get(model) ?? 1) - 1;
    views.set(model, left);
    if (left === 0) setTimeout(() => views.get(model) === 0 && sayLeft(model), LEFT);
  });
}

/** The last view is gone, so its run need not go on. Nobody is left to hear the answer. */
function sayLeft(model: Model): void {
  try {
    model.send({ kind: "call", id: `left-${Math.random()}`, method: "left", params: {} });
  } catch {
    // the kernel is gone too
  }
}

const render = inLanguage(draw);

export function mountStatic(el: HTMLElement, state: Record<string, unknown>): void {
  mount(render, el, state);
}

export default { render };
