/** The gemloupe widgets among a notebook's outputs. */

import type { NotebookPanel } from "@jupyterlab/notebook";
import type { IRenderMime } from "@jupyterlab/rendermime";
import { Panel } from "@lumino/widgets";

export const WIDGET_VIEW = "application/vnd.jupyter.widget-view+json";
/** The static twin beside a widget: no other widget has one. */
const TWIN = "data-gemloupe-static";

export interface Output extends IRenderMime.IMimeModel {
  toJSON(): unknown;
}

interface OutputCell {
  outputArea: { widgets: readonly Panel[]; model: { get(index: number): Output; length: number } };
}

/** The cell output that a node shows, and the Lumino panel that drew it. */
export function outputAt(notebook: NotebookPanel, node: Element): { output: Output; panel: Panel } | null {
  for (const cell of notebook.content.widgets) {
    if (!cell.node.contains(node) || !("outputArea" in cell)) continue;
    const { outputArea } = cell as unknown as OutputCell;
    const place = outputArea.widgets.findIndex((widget) => widget.node.contains(node));
    if (place < 0 || place >= outputArea.model.length) return null;
    const parts = [outputArea.widgets[place], ...outputArea.widgets[place].children()];
    const panel = parts.find((widget) => widget.node === node);
    return panel instanceof Panel ? { output: outputArea.model.get(place), panel } : null;
  }
  return null;
}

export function hasTwin(output: Output): boolean {
  const html = output.data["text/html"];
  const text = Array.isArray(html) ? html.join("") : html;
  return WIDGET_VIEW in output.data && typeof text === "string" && text.includes(TWIN);
}

/** The widget's id and what shows it, at a node of a notebook; without one, in the active cell. */
export function widgetIn(notebook: NotebookPanel, node?: Element | null): { id: string; node: HTMLElement } | null {
  for (const cell of node ? notebook.content.widgets : [notebook.content.activeCell]) {
    if (!cell || !("outputArea" in cell) || (node && !cell.node.contains(node))) continue;
    const { outputArea } = cell as unknown as OutputCell;
    for (let i = 0; i < outputArea.model.length; i++) {
      const output = outputArea.model.get(i);
      const shown = outputArea.widgets[i]?.node;
      if (!shown || (node && !shown.contains(node)) || !hasTwin(output)) continue;
      const { model_id } = output.data[WIDGET_VIEW] as unknown as { model_id?: string };
      if (model_id) return { id: model_id, node: shown };
    }
  }
  return null;
}
