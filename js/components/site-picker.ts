/** Which site is shown: a choice with a step to either side. */

import { mark, t } from "../core/words";
import { h } from "./dom";
import "./site-picker.css";

/** Kinds in the order they are listed. Within one, layers; so a step leads to the next layer of the same kind. */
const KINDS = new Map([
  ["res", mark("residual stream")],
  ["mlp", "MLP"],
  ["att", mark("attention")],
  ["transcoder", mark("transcoder")],
]);

export interface SitePicker {
  el: HTMLElement;
  show(sites: string[], site: string, enabled: boolean): void;
  /** Shows that another site is on its way; `null` when it is not. */
  wait(site: string | null): void;
  /** The site `by` steps further in the list, or undefined at the end. */
  step(by: -1 | 1): string | undefined;
}

export function sitePicker(onPick: (site: string) => void, signal: AbortSignal): SitePicker {
  const select = h("select", { attrs: { "aria-label": t("Site"), title: t("Site ([ and ] step through them)") } });
  const before = h("button", {
    class: "gl-step",
    text: "‹",
    attrs: { type: "button", "aria-label": t("Previous site") },
  });
  const after = h("button", { class: "gl-step", text: "›", attrs: { type: "button", "aria-label": t("Next site") } });
  const el = h("div", { class: "gl-sites" }, before, select, after);
  let sites: string[] = [];
  let listed = "";
  let shown = "";
  let live = true;

  const step = (by: -1 | 1): string | undefined => {
    const here = sites.indexOf(select.value);
    return here < 0 ? sites.at(by > 0 ? 0 : -1) : sites[here + by];
  };
  const refresh = () => {
    select.disabled = !live;
    before.disabled = !live || step(-1) === undefined;
    after.disabled = !live || step(1) === undefined;
  };
  select.addEventListener("change", () => select.value && onPick(select.value), { signal });
  for (const [button, by] of [
    [before, -1],
    [after, 1],
  ] as const)
    button.addEventListener(
      "click",
      () => {
        const site = step(by);
        if (site !== undefined) onPick(site);
      },
      { signal },
    );
  return {
    el,
    step,
    show(given, site, enabled) {
      if (given.join() !== listed || site !== shown) {
        listed = given.join();
        const groups = [...new Set([...KINDS.keys(), ...given.map(kindOf)])]
          .map((kind) => ({ kind, names: given.filter((name) => kindOf(name) === kind) }))
          .filter(({ names }) => names.length > 0);
        sites = groups.flatMap(({ names }) => names);
        shown = site;
        select.replaceChildren(
          ...(given.includes(site) ? [] : [option(site)]),
          ...(groups.length > 1
            ? groups.map(({ kind, names }) =>
                h("optgroup", { attrs: { label: t(KINDS.get(kind) ?? kind) } }, ...names.map(option)),
              )
            : sites.map(option)),
        );
        select.value = site;
      }
      live = enabled;
      el.hidden = sites.length === 0 && site === "";
      refresh();
    },
    wait(site) {
      el.toggleAttribute("aria-busy", site !== null);
      select.value = site ?? shown;
      refresh();
    },
  };
}

const kindOf = (site: string) => site.split(".")[0] ?? site;

const option = (name: string) =>
  h("option", { text: name || t("no site"), attrs: { value: name, disabled: name === "" } });
