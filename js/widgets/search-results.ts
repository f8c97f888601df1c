/** What a search found, for any host of anywidgets. */

import { type Found, searchResults } from "../components/search-results";
import { paletteOf } from "../core/colour";
import { heartbeat } from "../core/heartbeat";
import { readChosen, readHits, readKind } from "../core/hit";
import { type Model, PROTOCOL } from "../core/model";
import type { About } from "../core/picture";
import { isAbort, Rpc } from "../core/rpc";
import { trait } from "../core/synced";
import { t } from "../core/words";
import { type Host, showBelow } from "./_below";
import { isLive, OTHER_VERSION, type RenderProps, SILENT } from "./_connect";
import { inLanguage } from "./_language";
import { mount } from "./_static";

const SHOWN = ["kind", "query", "rows", "relative", "dense", "hidden", "complete", "notes", "about"];

function readFound(model: Model): Found {
  const notes = model.get("notes");
  return {
    kind: readKind(model.get("kind")),
    query: String(model.get("query") ?? ""),
    hits: readHits(model.get("rows")),
    relative: model.get("relative") !== false,
    dense: model.get("dense") === true,
    hidden: Number(model.get("hidden") ?? 0),
    complete: model.get("complete") !== false,
    notes: Array.isArray(notes) ? notes.map(String) : [],
    about: model.get("about") as About,
  };
}

function draw({ model, el, signal, host }: RenderProps & { host?: Host }): void {
  const rpc = new Rpc(model, signal);
  const live = isLive(model) && model.get("protocol") === PROTOCOL;
  const view = searchResults({
    selection: trait(model, "selection", readChosen),
    palette: trait(model, "palette", paletteOf),
    rank: (relative, dense) => rpc.call("rank", { relative, dense }, { signal }),
    steer: (feature) => rpc.call("steer", { feature }, { signal }),
    card: (feature) => rpc.call("card", { feature }, { signal }),
    unsteer: () => rpc.call("unsteer", {}, { signal }),
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
  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    // One message changes several traits; they are one picture.
    queueMicrotask(() => {
      due = false;
      if (!signal.aborted) view.show(readFound(model));
    });
  };
  for (const name of SHOWN) trait(model, name, () => undefined).subscribe(soon, signal);
  view.show(readFound(model));
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
