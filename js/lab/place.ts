/** Where views come from and are drawn: a notebook's kernel and renderers, or the sidebar's own. */

import type { ISessionContext } from "@jupyterlab/apputils";
import type { NotebookPanel } from "@jupyterlab/notebook";
import { OutputAreaModel, SimplifiedOutputArea } from "@jupyterlab/outputarea";
import type { IRenderMimeRegistry } from "@jupyterlab/rendermime";

export interface Place {
  /** The notebook's file name; empty for the sidebar's own kernel. */
  name: string;
  context: ISessionContext;
  /** It has the widget renderer of this kernel's widget manager. */
  rendermime: IRenderMimeRegistry;
  notebook: NotebookPanel | null;
}

export function placeOf(notebook: NotebookPanel): Place {
  return {
    name: notebook.context.path.split("/").pop() ?? notebook.context.path,
    context: notebook.sessionContext,
    rendermime: notebook.content.rendermime,
    notebook,
  };
}

const TRIES = 8;
const PAUSE = 250;

/** The widget of a kernel, drawn by its widget manager like any output. */
export function drawn(place: Place, id: string): SimplifiedOutputArea {
  const model = new OutputAreaModel({ trusted: true });
  const area = new SimplifiedOutputArea({ model, rendermime: place.rendermime });
  area.addClass("gl-lab-drawn");
  const draw = (left: number) => {
    if (area.isDisposed) return;
    model.clear();
    model.add({
      output_type: "display_data",
      data: {
        "application/vnd.jupyter.widget-view+json": { version_major: 2, version_minor: 0, model_id: id },
        "text/plain": "",
      },
      metadata: {},
    });
    // A page that was just loaded may not have all models of the kernel yet.
    if (left > 0) setTimeout(() => failed(area) && draw(left - 1), PAUSE * (TRIES - left + 1));
  };
  draw(TRIES);
  return area;
}

function failed(area: SimplifiedOutputArea): boolean {
  const node = area.isDisposed ? null : area.node.querySelector(".jp-OutputArea-output.jupyter-widgets");
  return node !== null && node.childElementCount === 0;
}
