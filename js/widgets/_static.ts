/**
 * The static twin: a widget's last state in a page without a kernel.
 *
 * What the kernel writes as text/html and `to_html()`, for the widget NAME ("token-heatmap", "feature-table"):
 *
 *   <div data-gemloupe-static="NAME">
 *     <style>…static/NAME.css…</style>
 *     <div data-gemloupe-picture>…the coloured tokens as plain spans…</div>
 *     <script type="application/json">…state…</script>
 *     <script>…static/NAME.static.js…</script>
 *   </div>
 *
 * - A classic script, not a module: it knows its own place (`document.currentScript`), and needs neither an import nor
 *   a blob: URL, so it runs from file://, in nbconvert's page and under a content policy that allows inline scripts.
 * - `state` is one JSON object with every synced trait; an array is {"dtype", "shape", "base64"}; `facts` is an object
 *   (not null). Write "<" as \u003c in it. The bundles contain no "</script" (the build checks that).
 * - The picture is what is seen where scripts do not run, as in an untrusted notebook. Jupyter's sanitizer keeps only
 *   inline styles there, and of colours only hex, names, `rgb(r, g, b)` and `rgba(r, g, b, a)`. It is removed once the
 *   widget stands in its place.
 */

import { frozenModel } from "../core/frozen";
import type { RenderProps } from "./_connect";

type Render = (props: RenderProps) => void;

export function mount(render: Render, el: HTMLElement, state: Record<string, unknown>): void {
  render({ model: frozenModel(state), el, signal: new AbortController().signal });
}

/** For the script inside the twin: mounts the widget around itself. */
export function mountHere(render: Render): void {
  const box = document.currentScript?.closest("[data-gemloupe-static]");
  const state = box?.querySelector('script[type="application/json"]')?.textContent;
  if (!box || !state) return;
  const el = document.createElement("div");
  mount(render, el, JSON.parse(state));
  box.querySelector("[data-gemloupe-picture]")?.remove();
  box.append(el);
}
