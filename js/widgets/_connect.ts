/** From a model's traits to what the components take. */

import type { Banner } from "../components/banner";
import type { View, ViewOptions } from "../components/view";
import { paletteOf } from "../core/colour";
import { FactsCache } from "../core/facts";
import type { Selection } from "../core/feature";
import { readFidelity } from "../core/fidelity";
import { heartbeat } from "../core/heartbeat";
import { type Model, PROTOCOL } from "../core/model";
import type { About, Picture } from "../core/picture";
import { isAbort, Rpc } from "../core/rpc";
import { Strengths, type WireMaxima } from "../core/strengths";
import { trait } from "../core/synced";
import type { Guess, Token } from "../core/token";
import { SparseActs, type WireActs } from "../core/wire";
import { mark, t } from "../core/words";

export interface RenderProps {
  model: Model;
  el: HTMLElement;
  signal: AbortSignal;
}

export const SILENT = mark("The kernel does not answer (busy or stopped). What is shown stays.");
export const OTHER_VERSION = mark(
  "Reload the page: widget and kernel are of different versions. If that does not help, restart the kernel.",
);

export function readSelection(given: unknown): Selection {
  const { token, feature } = (given ?? {}) as Partial<Selection>;
  return {
    token: typeof token === "number" && Number.isInteger(token) && token >= 0 ? token : null,
    feature: typeof feature === "string" ? feature : null,
  };
}

export function readPicture(model: Model): Picture {
  const tokens = (model.get("tokens") ?? []) as Token[];
  const acts = model.get("acts") as WireActs | null;
  const special = tokens.map((token) => token.special);
  return {
    tokens,
    sites: (model.get("sites") ?? []) as string[],
    site: (model.get("site") ?? "") as string,
    strengths: acts ? new Strengths(new SparseActs(acts), model.get("maxima") as WireMaxima | null, special) : null,
    guesses: (model.get("guesses") ?? null) as Guess[][] | null,
    about: model.get("about") as About,
    live: isLive(model),
  };
}

/** A saved picture carries its facts; with a kernel they are asked for. */
export function isLive(model: Model): boolean {
  return (model.get("facts") ?? null) === null;
}

/** The traits that make a picture, rather than a choice within it. */
const PICTURE = ["tokens", "sites", "site", "acts", "maxima", "guesses", "about"];

/** What a view needs of its model. `banner` is asked for when there is something to say. */
export function connect(model: Model, banner: () => Banner, signal: AbortSignal): ViewOptions & { rpc: Rpc } {
  const rpc = new Rpc(model, signal);
  return {
    rpc,
    signal,
    selection: trait(model, "selection", readSelection),
    palette: trait(model, "palette", paletteOf),
    facts: new FactsCache(rpc),
    openSite: (site, wanted) => rpc.call("site", { site }, { signal: wanted }),
    fidelity: trait(model, "fidelity", readFidelity),
    measure: (site, wanted) => rpc.call("fidelity", { site }, { signal: wanted }),
    onError(subject, error) {
      if (isAbort(error)) return;
      if (error !== null && error !== undefined) console.warn("gemloupe:", error);
      banner().say(subject, error === null ? null : error instanceof Error ? error.message : String(error));
    },
  };
}

/** How long a site waits for its activations, which may come in a message of their own. */
const PATIENCE = 1000;

/** Shows the model's picture now and after every change, and watches over the kernel. */
export function keepShown({ model, el, signal }: RenderProps, view: View, rpc: Rpc): void {
  el.append(view.el);
  signal.addEventListener("abort", () => view.el.remove(), { once: true });
  let shown: { site: unknown; acts: unknown } | null = null;
  let late: ReturnType<typeof setTimeout> | undefined;
  signal.addEventListener("abort", () => clearTimeout(late), { once: true });
  const show = () => {
    if (signal.aborted) return;
    clearTimeout(late);
    const other = model.get("protocol") !== PROTOCOL;
    view.banner.say("version", other ? t(OTHER_VERSION) : null);
    if (other) return;
    try {
      view.show(readPicture(model));
      view.banner.say("unreadable", null);
    } catch (error) {
      console.error("gemloupe:", error);
      view.banner.say(
        "unreadable",
        t("What the kernel sent cannot be shown: {error}.", { error: (error as Error).message }),
      );
    }
    shown = { site: model.get("site"), acts: model.get("acts") };
  };
  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    // One message changes several traits; they are one picture.
    queueMicrotask(() => {
      due = false;
      // A site's name over the activations of another would be a wrong picture.
      const half = shown?.acts && shown.site !== model.get("site") && shown.acts === model.get("acts");
      clearTimeout(late);
      if (half) late = setTimeout(show, PATIENCE);
      else show();
    });
  };
  for (const name of ["protocol", ...PICTURE]) trait(model, name, () => undefined).subscribe(soon, signal);
  show();
  if (isLive(model))
    heartbeat(rpc, {
      visible: () => document.visibilityState === "visible" && view.el.getClientRects().length > 0,
      onChange: (silent) => view.banner.say("silent", silent ? t(SILENT) : null),
      signal,
    });
}
