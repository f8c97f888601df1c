/** What views are called. */

import type { TranslationBundle } from "@jupyterlab/translation";
import type { ViewFacts } from "./kernel-end";
import type { Standing } from "./standing";

/** By the method of a loupe that makes them, or by the widget's own name. */
export function titles(trans: TranslationBundle): Record<string, string> {
  return {
    heatmap: trans.__("Tokens"),
    "token-heatmap": trans.__("Tokens"),
    table: trans.__("Table"),
    "feature-table": trans.__("Table"),
    steer: trans.__("Steering"),
    "steering-desk": trans.__("Steering"),
    evolution: trans.__("Layers"),
    "layer-evolution": trans.__("Layers"),
    search: trans.__("Search"),
    "search-results": trans.__("Search"),
    contrast: trans.__("Contrast"),
    card: trans.__("Feature"),
    cards: trans.__("Two features"),
  };
}

export function titleOf(trans: TranslationBundle, view: ViewFacts, length = 32): string {
  const given = view.given.length > length ? `${view.given.slice(0, length - 1)}…` : view.given;
  const name = titles(trans)[view.method] ?? view.method;
  return given ? `${name}: ${given}` : name;
}

/** How a kernel stands, in a sentence. */
export function standingWords(
  trans: TranslationBundle,
  standing: Standing,
  about: { notebook: boolean; language: string; fault: string },
): string {
  switch (standing) {
    case "none":
      return about.notebook
        ? trans.__("The notebook has no kernel.")
        : trans.__("There is no kernel. Open a notebook, or start a kernel for the sidebar alone.");
    case "starting":
      return trans.__("The kernel is starting.");
    case "joining":
      return trans.__("The sidebar is connecting to the kernel.");
    case "ready":
      return trans.__("The kernel is ready.");
    case "busy":
      return about.notebook
        ? trans.__("The kernel runs a cell. The sidebar still answers.")
        : trans.__("The kernel is at work.");
    case "waiting":
      return trans.__("The kernel has not answered yet: it is busy, and answers when its cell has ended.");
    case "restarting":
      return trans.__("The kernel is restarting. Its models and views are gone.");
    case "dead":
      return trans.__("The kernel is dead.");
    case "offline":
      return trans.__("The connection to the kernel is lost. JupyterLab tries to get it back.");
    case "language":
      return trans.__("This kernel speaks %1. Gemloupe needs a Python kernel.", about.language);
    case "missing":
      return trans.__("Gemloupe is not installed in this kernel. Install it with:");
    case "old":
      return trans.__(
        "The kernel's gemloupe is of another version than the sidebar's. Update it, then restart the kernel:",
      );
    case "failed":
      return trans.__("The kernel could not be asked: %1", about.fault);
  }
}
