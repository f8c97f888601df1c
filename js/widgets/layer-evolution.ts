/** A text from layer to layer, for any host of anywidgets. */

import { layerEvolution, readNames, readView } from "../components/layer-evolution";
import { readAttribution } from "../core/attribution";
import { paletteOf } from "../core/colour";
import { readEvolution, type WireGuesses } from "../core/evolution";
import { FactsCache } from "../core/facts";
import { type Facts, featureName } from "../core/feature";
import { heartbeat } from "../core/heartbeat";
import { PROTOCOL } from "../core/model";
import type { About } from "../core/picture";
import { isAbort, Rpc } from "../core/rpc";
import { trait } from "../core/synced";
import type { Token } from "../core/token";
import { t } from "../core/words";
import { type Host, showBelow } from "./_below";
import { isLive, OTHER_VERSION, type RenderProps, readSelection, SILENT } from "./_connect";
import { inLanguage } from "./_language";
import { mount } from "./_static";

function draw({ model, el, signal, host }: RenderProps & { host?: Host }): void {
  const rpc = new Rpc(model, signal);
  const live = isLive(model) && model.get("protocol") === PROTOCOL;
  const asked = new FactsCache(rpc);
  const saved = (model.get("facts") ?? {}) as Record<string, Facts>;
  const ask = <T>(method: string, params: Record<string, unknown> = {}) => rpc.call<T>(method, params, { signal });
  const view = layerEvolution({
    selection: trait(model, "selection", readSelection),
    view: trait(model, "view", readView),
    names: trait(model, "names", readNames),
    attribution: trait(model, "attribution", readAttribution),
    palette: trait(model, "palette", paletteOf),
    guessing: () => model.get("guessing") === true,
    facts: {
      get: (site, feature) => saved[featureName(site, feature)] ?? asked.get(site, feature),
      want: (site, features, wanted) => asked.want(site, features, wanted),
    },
    attribute: (target, position) => ask("attribution", { target, position }),
    check: (n, edge) => ask("check", { n, ...edge }),
    concept: (feature) => ask("concept", { feature }),
    openCard: (feature) => ask("card", { feature }),
    closeCard: () => ask("uncard"),
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
  const show = () => {
    if (signal.aborted) return;
    try {
      const tokens = (model.get("tokens") ?? []) as Token[];
      const special = tokens.map((token) => token.special);
      const evolution = readEvolution(model.get("layers"), special, model.get("guesses"));
      if (evolution) view.show({ tokens, evolution, about: model.get("about") as About });
      view.banner.say("unreadable", null);
    } catch (error) {
      console.error("gemloupe:", error);
      view.banner.say(
        "unreadable",
        t("What the kernel sent cannot be shown: {error}.", { error: (error as Error).message }),
      );
    }
  };
  trait(model, "layers", () => undefined).subscribe(show, signal);
  for (const name of ["guesses", "guessing"])
    trait(model, name, () => model.get("guesses") as WireGuesses).subscribe(view.learn, signal);
  show();
  if (!live) return;
  if (host) showBelow(model, "card", host, view, signal);
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
