/** A feature's card, for any host of anywidgets. */

import { featureCard } from "../components/feature-card";
import {
  readAblated,
  readExamples,
  readMore,
  readNear,
  readReading,
  readSaid,
  readShown,
  readText,
  readTrail,
} from "../core/card";
import { paletteOf } from "../core/colour";
import { heartbeat } from "../core/heartbeat";
import { PROTOCOL } from "../core/model";
import type { About } from "../core/picture";
import { isAbort, Rpc } from "../core/rpc";
import { trait } from "../core/synced";
import { t } from "../core/words";
import { type Host, showBelow } from "./_below";
import { isLive, OTHER_VERSION, type RenderProps, SILENT } from "./_connect";
import { inLanguage } from "./_language";
import { mount } from "./_static";

function draw({ model, el, signal, host }: RenderProps & { host?: Host }): void {
  const rpc = new Rpc(model, signal);
  const live = isLive(model) && model.get("protocol") === PROTOCOL;
  const view = featureCard({
    values: {
      about: trait(model, "about", (given) => given as About),
      shown: trait(model, "shown", readShown),
      said: trait(model, "said", readSaid),
      examples: trait(model, "examples", readExamples),
      near: trait(model, "near", readNear),
      more: trait(model, "more", readMore),
      text: trait(model, "text", readText),
      reading: trait(model, "reading", readReading),
      ablated: trait(model, "ablated", readAblated),
      trail: trait(model, "trail", readTrail),
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
  signal.addEventListener("abort", () => view.el.remove(), { once: true });
  if (isLive(model) && !live) view.banner.say("version", t(OTHER_VERSION));
  if (!live) return;
  if (host) showBelow(model, "desk", host, view, signal);
  heartbeat(rpc, {
    visible: () => document.visibilityState === "visible" && view.el.getClientRects().length > 0,
    onChange: (silent) => view.banner.say("silent", silent ? t(SILENT) : null),
    signal,
  });
}

const render = inLanguage(draw);

export function mountStatic(el: HTMLElement, state: Record<string, unknown>): void {
  mount(render, el, state);
}

export default { render };
