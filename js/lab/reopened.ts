/**
 * A notebook reopened without its kernel shows "Error displaying widget: model not found", though the output also
 * holds the widget's static twin. This puts the twin in the error's place.
 */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from "@jupyterlab/application";
import { INotebookTracker, type NotebookPanel } from "@jupyterlab/notebook";
import { hasTwin, outputAt } from "./outputs";

/** The widget renderer gives itself this class when it fails; one that shows a widget has a child instead. */
const FAILED = ".jp-OutputArea-output.jupyter-widgets";

async function showTwin(notebook: NotebookPanel, node: Element): Promise<void> {
  const found = outputAt(notebook, node);
  if (!found || found.panel.widgets.length || !hasTwin(found.output)) return;
  const { output, panel } = found;
  panel.node.textContent = "";
  panel.removeClass("jupyter-widgets");
  const html = notebook.content.rendermime.createRenderer("text/html");
  panel.addWidget(html);
  // The model says whether the output is trusted: if not, the renderer drops the scripts and the picture remains.
  await html.renderModel(output);
}

function watch(notebook: NotebookPanel): void {
  let due = false;
  const look = () => {
    due = false;
    for (const node of notebook.node.querySelectorAll(FAILED))
      showTwin(notebook, node).catch((error) => console.error("gemloupe: a saved picture could not be shown", error));
  };
  const observer = new MutationObserver(() => {
    if (due || notebook.isDisposed) return;
    due = true;
    requestAnimationFrame(look);
  });
  observer.observe(notebook.node, { subtree: true, childList: true, attributes: true, attributeFilter: ["class"] });
  notebook.disposed.connect(() => observer.disconnect());
  look();
}

export const reopened: JupyterFrontEndPlugin<void> = {
  id: "gemloupe:reopened",
  description: "Shows the saved picture of a widget whose kernel is gone.",
  autoStart: true,
  requires: [INotebookTracker],
  activate: (_app: JupyterFrontEnd, notebooks: INotebookTracker) => {
    notebooks.forEach(watch);
    notebooks.widgetAdded.connect((_tracker, notebook) => watch(notebook));
  },
};
