/** Two cards as a saved picture: the state of each lies in the state of both. */

import { sideBySide } from "../components/side-by-side";
import type { Model } from "../core/model";
import { mountHere } from "./_static";
import { mountStatic } from "./feature-card";

export function mountBoth({ model, el }: { model: Model; el: HTMLElement }): void {
  const view = sideBySide();
  el.append(view.el);
  for (const side of ["left", "right"] as const) mountStatic(view[side], model.get(side) as Record<string, unknown>);
}

mountHere(mountBoth);
