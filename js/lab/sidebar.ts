/** The sidebar's plugin: its place in the window, its commands, and what it remembers. */

import { ILayoutRestorer, type JupyterFrontEnd, type JupyterFrontEndPlugin } from "@jupyterlab/application";
import { ICommandPalette, MainAreaWidget, WidgetTracker } from "@jupyterlab/apputils";
import { ILauncher } from "@jupyterlab/launcher";
import { INotebookTracker, NotebookActions } from "@jupyterlab/notebook";
import { IRenderMimeRegistry } from "@jupyterlab/rendermime";
import { IStateDB } from "@jupyterlab/statedb";
import { ITranslator } from "@jupyterlab/translation";
import type { Widget } from "@lumino/widgets";
import { gemloupeIcon } from "./icon";
import type { ViewFacts } from "./kernel-end";
import { ownKernel } from "./own-kernel";
import { type Kept, Sidebar, titles } from "./panel";
import { drawn, type Place, placeOf } from "./place";
import { bundleOf } from "./translate";

export const OPEN_SIDEBAR = "gemloupe:open-sidebar";
export const STOP = "gemloupe:stop";
const STATE = "gemloupe:sidebar";
const CATEGORY = "Gemloupe";

function readKept(given: unknown): Kept {
  const { kernel, prompt, view } = (given ?? {}) as Partial<Kept>;
  return {
    kernel: typeof kernel === "string" ? kernel : "follow",
    prompt: typeof prompt === "string" ? prompt : "",
    view: typeof view === "string" ? view : null,
  };
}

function download(name: string, html: string): void {
  const url = URL.createObjectURL(new Blob([html], { type: "text/html" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export const sidebar: JupyterFrontEndPlugin<void> = {
  id: "gemloupe:sidebar",
  description: "The loupe in the sidebar, on the notebook's kernel or one of its own.",
  autoStart: true,
  requires: [INotebookTracker, IRenderMimeRegistry],
  optional: [ICommandPalette, ILauncher, ILayoutRestorer, IStateDB, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    notebooks: INotebookTracker,
    rendermime: IRenderMimeRegistry,
    palette: ICommandPalette | null,
    launcher: ILauncher | null,
    restorer: ILayoutRestorer | null,
    states: IStateDB | null,
    translator: ITranslator | null,
  ) => {
    const trans = bundleOf(translator);
    let own: Place | null = null;
    let starting: Promise<void> | null = null;
    const startOwn = () => {
      starting ??= ownKernel(app.serviceManager, rendermime)
        .then((place) => {
          own = { ...place, name: trans.__("A kernel of its own") };
        })
        .finally(() => {
          if (!own) starting = null;
        });
      return starting;
    };
    const tabs = new WidgetTracker<MainAreaWidget<Widget>>({ namespace: "gemloupe-view" });
    let saving: ReturnType<typeof setTimeout> | undefined;

    const panel = new Sidebar(
      {
        trans,
        language: translator?.languageCode ?? "en",
        notebooks: () => {
          const open: { path: string; name: string }[] = [];
          notebooks.forEach(
            (notebook) => void open.push({ path: notebook.context.path, name: placeOf(notebook).name }),
          );
          return open;
        },
        place(choice) {
          if (choice === "own") return own;
          if (choice === "follow") return notebooks.currentWidget ? placeOf(notebooks.currentWidget) : null;
          const chosen = notebooks.find((notebook) => notebook.context.path === choice);
          return chosen ? placeOf(chosen) : null;
        },
        startOwn,
        async insert(place, code) {
          let { notebook } = place;
          if (!notebook) {
            const made = await app.commands.execute("notebook:create-new", {
              kernelId: place.context.session?.kernel?.id,
            });
            await made.context.ready;
            notebook = made;
          }
          if (!notebook) return;
          const { content } = notebook;
          const empty =
            content.activeCell?.model.type === "code" && !content.activeCell.model.sharedModel.getSource().trim();
          if (!empty) NotebookActions.insertBelow(content);
          content.activeCell?.model.sharedModel.setSource(code);
          app.shell.activateById(notebook.id);
        },
        openInTab(place: Place, view: ViewFacts) {
          const content = drawn(place, view.id);
          content.addClass("gl-lab-tab");
          const tab = new MainAreaWidget<Widget>({ content });
          tab.title.label = `${titles(trans)[view.method] ?? view.method}: ${view.given.slice(0, 24)}`;
          tab.title.caption = view.given;
          tab.title.icon = gemloupeIcon;
          void tabs.add(tab);
          app.shell.add(tab, "main", { mode: "split-right" });
          app.shell.activateById(tab.id);
        },
        save: download,
        keep(changed) {
          clearTimeout(saving);
          saving = setTimeout(() => {
            states?.save(STATE, { ...changed }).catch((error) => console.warn("gemloupe: state is not kept", error));
          }, 300);
        },
      },
      readKept(null),
    );
    const follow = () => panel.follow();
    notebooks.currentChanged.connect(follow);
    notebooks.widgetAdded.connect((_tracker, notebook) => {
      follow();
      notebook.disposed.connect(follow);
    });
    panel.disposed.connect(() => notebooks.currentChanged.disconnect(follow));
    app.shell.add(panel, "left", { rank: 450, type: "Gemloupe" });
    restorer?.add(panel, panel.id);
    // Not awaited: the state is there only after all plugins are.
    states
      ?.fetch(STATE)
      .then(async (given) => {
        const kept = readKept(given);
        panel.restore(kept);
        // A kernel that an earlier page left running is found again.
        if (kept.kernel === "own") await app.serviceManager.ready.then(startOwn).then(follow);
      })
      .catch((error) => console.warn("gemloupe: the sidebar's last state is not there", error));

    app.commands.addCommand(OPEN_SIDEBAR, {
      label: (args) => (args.isPalette ? trans.__("Gemloupe: open the sidebar") : trans.__("Gemloupe")),
      caption: trans.__("Look into a model without code"),
      icon: gemloupeIcon,
      execute: () => {
        app.shell.activateById(panel.id);
        panel.focusPrompt();
      },
    });
    app.commands.addCommand(STOP, {
      label: (args) => (args.isPalette ? trans.__("Gemloupe: stop what runs") : trans.__("Stop what runs")),
      execute: () => panel.stop(),
    });
    for (const command of [OPEN_SIDEBAR, STOP])
      palette?.addItem({ command, category: CATEGORY, args: { isPalette: true } });
    launcher?.add({ command: OPEN_SIDEBAR, category: CATEGORY, rank: 0 });
  },
};
