/** The sidebar's plugin: its place in the window, its commands, and what it remembers. */

import { ILayoutRestorer, type JupyterFrontEnd, type JupyterFrontEndPlugin } from "@jupyterlab/application";
import { ICommandPalette, Notification, WidgetTracker } from "@jupyterlab/apputils";
import { ILauncher } from "@jupyterlab/launcher";
import { INotebookTracker } from "@jupyterlab/notebook";
import { IRenderMimeRegistry } from "@jupyterlab/rendermime";
import { ISettingRegistry } from "@jupyterlab/settingregistry";
import { IStateDB } from "@jupyterlab/statedb";
import { ITranslator } from "@jupyterlab/translation";
import { gemloupeIcon } from "./icon";
import { KernelEnds } from "./kernel-end";
import { widgetIn } from "./outputs";
import { isRunning, ownKernel, startPython } from "./own-kernel";
import { type Kept, Sidebar } from "./panel";
import { type Place, placeOf } from "./place";
import { CATEGORY, PLUGIN } from "./plugin-id";
import { followSettings, readSettings } from "./settings";
import { bundleOf } from "./translate";
import { type Subject, ViewActions } from "./view-actions";
import { ViewTab } from "./view-tab";

const OPEN_SIDEBAR = "gemloupe:open-sidebar";
const STOP = "gemloupe:stop";
const LOOK = "gemloupe:look";
const OPEN_VIEW = "gemloupe:open-view";
const IN_PANEL = "gemloupe:open-in-panel";
const IN_TAB = "gemloupe:open-in-tab";
const INSERT = "gemloupe:insert-cell";
const SAVE_HTML = "gemloupe:save-html";
const SAVE_PNG = "gemloupe:save-png";
const STATE = "gemloupe:sidebar";
/** Milliseconds that a tab waits, after the page was loaded again, for the notebook it belongs to. */
const PATIENCE = 20_000;

function readKept(given: unknown): Kept {
  const { kernel, prompt, view } = (given ?? {}) as Partial<Kept>;
  return {
    kernel: typeof kernel === "string" ? kernel : "follow",
    prompt: typeof prompt === "string" ? prompt : "",
    view: typeof view === "string" ? view : null,
  };
}

export const sidebar: JupyterFrontEndPlugin<void> = {
  id: "gemloupe:sidebar",
  description: "The loupe in the sidebar, on the notebook's kernel or one of its own.",
  autoStart: true,
  requires: [INotebookTracker, IRenderMimeRegistry],
  optional: [ICommandPalette, ILauncher, ILayoutRestorer, IStateDB, ITranslator, ISettingRegistry],
  activate: (
    app: JupyterFrontEnd,
    notebooks: INotebookTracker,
    rendermime: IRenderMimeRegistry,
    palette: ICommandPalette | null,
    launcher: ILauncher | null,
    restorer: ILayoutRestorer | null,
    states: IStateDB | null,
    translator: ITranslator | null,
    registry: ISettingRegistry | null,
  ) => {
    const trans = bundleOf(translator);
    const ends = new KernelEnds(translator?.languageCode ?? "en");
    const actions = new ViewActions(app, notebooks, ends, trans);
    const tabs = new WidgetTracker<ViewTab>({ namespace: "gemloupe-view" });
    let settings = readSettings();
    let saving: ReturnType<typeof setTimeout> | undefined;

    // ---- kernels

    let own: Place | null = null;
    let starting: Promise<void> | null = null;
    const startOwn = async () => {
      if (own && !own.context.session?.kernel) await startPython(own.context, app.serviceManager);
      starting ??= ownKernel(app.serviceManager, rendermime)
        .then((place) => {
          own = { ...place, name: trans.__("A kernel of its own") };
        })
        .finally(() => {
          if (!own) starting = null;
        });
      await starting;
    };
    const placeFor = (choice: string): Place | null => {
      if (choice === "own") return own;
      if (choice === "follow") return notebooks.currentWidget ? placeOf(notebooks.currentWidget) : null;
      const chosen = notebooks.find((notebook) => notebook.context.path === choice);
      return chosen ? placeOf(chosen) : null;
    };
    const failed = (error: unknown) => {
      const words = error instanceof Error ? error.message : String(error);
      Notification.error(words.slice(0, 140), { autoClose: 10_000 });
    };

    // ---- the panel

    const panel = new Sidebar(
      {
        trans,
        ends,
        actions,
        choices: () => settings,
        notebooks: () => {
          const open: { path: string; name: string }[] = [];
          notebooks.forEach(
            (notebook) => void open.push({ path: notebook.context.path, name: placeOf(notebook).name }),
          );
          return open;
        },
        place: placeFor,
        startOwn,
        openInTab: (place, id) => void openInTab(place, id),
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
    panel.disposed.connect(() => {
      notebooks.currentChanged.disconnect(follow);
      ends.dispose();
    });
    let side = settings.side;
    app.shell.add(panel, side, { rank: 450, type: "Gemloupe" });
    restorer?.add(panel, panel.id);
    const showPanel = () => app.shell.activateById(panel.id);
    // Not awaited: the state is there only after all plugins are.
    states
      ?.fetch(STATE)
      .then(async (given) => {
        const kept = readKept(given);
        panel.restore(kept);
        // A kernel that an earlier page left running is found again; none is started for it.
        if (kept.kernel !== "own") return;
        await app.serviceManager.ready;
        if (await isRunning(app.serviceManager)) await startOwn().then(follow);
      })
      .catch((error) => console.warn("gemloupe: the sidebar's last state is not there", error));

    // ---- views in tabs

    const showInPanel = async (subject: Subject) => {
      showPanel();
      await panel.adopt(subject);
    };
    function openTab(kernel: string, place: Promise<Place | null>, id: string): ViewTab {
      const known = tabs.find((tab) => tab.viewId === id);
      const tab = known ?? new ViewTab({ kernel, place, id, trans, ends, actions, showInPanel, failed });
      if (!known) {
        const beside = tabs.find((one) => one.isVisible);
        void tabs.add(tab);
        app.shell.add(tab, "main", beside ? { ref: beside.id, mode: "tab-after" } : { mode: "split-right" });
      }
      app.shell.activateById(tab.id);
      return tab;
    }
    const openInTab = (place: Place, id: string) =>
      openTab(place.notebook?.context.path ?? "own", Promise.resolve(place), id);
    /** The place that a tab was of, which comes a while after the page. */
    const comeBack = async (kernel: string): Promise<Place | null> => {
      await app.serviceManager.ready;
      if (kernel === "own") {
        if (!own && (await isRunning(app.serviceManager))) await startOwn();
        return own;
      }
      const end = performance.now() + PATIENCE;
      for (;;) {
        const place = placeFor(kernel);
        if (place?.context.session?.kernel || performance.now() > end) return place;
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
    };
    app.commands.addCommand(OPEN_VIEW, {
      label: trans.__("Gemloupe: open a view in a tab"),
      describedBy: {
        args: {
          type: "object",
          properties: {
            kernel: { type: "string", description: trans.__('"own", or the path of a notebook') },
            id: { type: "string", description: trans.__("The view, by the id of its model in the kernel") },
          },
          required: ["kernel", "id"],
        },
      },
      execute: ({ kernel, id }) =>
        typeof kernel === "string" && typeof id === "string" ? openTab(kernel, comeBack(kernel), id) : undefined,
    });
    void restorer?.restore(tabs, {
      command: OPEN_VIEW,
      args: ({ kernel, viewId }) => ({ kernel, id: viewId }),
      name: (tab) => tab.viewId,
    });

    // ---- commands

    /** The view that a command is about: the one under the menu, in the current tab, in the active cell, in the panel. */
    const subjectOf = (fromMenu: boolean): Subject | null => {
      const node = fromMenu ? app.contextMenuHitTest((one) => one.classList.contains("gl-root")) : undefined;
      const { currentWidget } = app.shell;
      const tab = tabs.find((one) => (node ? one.node.contains(node) : one === currentWidget));
      if (tab) return tab.subject;
      if (!node || !panel.node.contains(node)) {
        const notebook = notebooks.currentWidget;
        const found = notebook && (node || notebook === currentWidget) ? widgetIn(notebook, node) : null;
        if (notebook && found) return { place: placeOf(notebook), ...found };
      }
      return panel.subject;
    };
    const onView = (command: string, inMenu: string, inPalette: string, run: (subject: Subject) => unknown) => {
      app.commands.addCommand(command, {
        label: (args) => (args.isPalette ? inPalette : inMenu),
        icon: (args) => (args.isPalette ? undefined : gemloupeIcon),
        execute: async (args) => {
          const subject = subjectOf(args.isMenu === true);
          if (!subject) {
            Notification.info(trans.__("There is no view of gemloupe here: choose a cell that shows one."));
            return;
          }
          await Promise.resolve(run(subject)).catch(failed);
        },
      });
      palette?.addItem({ command, category: CATEGORY, args: { isPalette: true } });
    };
    onView(
      IN_PANEL,
      trans.__("Show in the Gemloupe Panel"),
      trans.__("Gemloupe: show the view in the panel"),
      showInPanel,
    );
    onView(IN_TAB, trans.__("Open in a Tab"), trans.__("Gemloupe: open the view in a tab"), async (subject) => {
      openInTab(subject.place, subject.id);
    });
    onView(INSERT, trans.__("Insert as Cell"), trans.__("Gemloupe: insert the view as a cell"), (subject) =>
      actions.insertCell(subject),
    );
    onView(SAVE_HTML, trans.__("Save View as HTML"), trans.__("Gemloupe: save the view as HTML"), (subject) =>
      actions.save(subject, "html"),
    );
    onView(SAVE_PNG, trans.__("Save View as PNG"), trans.__("Gemloupe: save the view as PNG"), (subject) =>
      actions.save(subject, "png"),
    );

    const focusPrompt = () => {
      panel.focusPrompt();
      setTimeout(() => panel.focusPrompt()); // the command palette gives the focus back to where it was
    };
    app.commands.addCommand(OPEN_SIDEBAR, {
      label: (args) => (args.isPalette ? trans.__("Gemloupe: open the sidebar") : trans.__("Gemloupe")),
      caption: trans.__("Look into a model without code"),
      icon: gemloupeIcon,
      execute: () => {
        showPanel();
        focusPrompt();
      },
    });
    app.commands.addCommand(STOP, {
      label: (args) => (args.isPalette ? trans.__("Gemloupe: stop what runs") : trans.__("Stop what runs")),
      execute: () => panel.stop(),
    });
    app.commands.addCommand(LOOK, {
      label: (args) =>
        args.isPalette ? trans.__("Gemloupe: look at the selected text") : trans.__("Look at the Selected Text"),
      icon: (args) => (args.isPalette ? undefined : gemloupeIcon),
      execute: async () => {
        const text = document.getSelection()?.toString().trim() ?? "";
        showPanel();
        if (text) await panel.look(text).catch(failed);
        else focusPrompt();
      },
    });
    for (const command of [OPEN_SIDEBAR, LOOK, STOP])
      palette?.addItem({ command, category: CATEGORY, args: { isPalette: true } });

    // ---- settings

    let card: { dispose(): void } | null = null;
    void followSettings(registry, PLUGIN, (now) => {
      settings = now;
      if (now.side !== side) {
        side = now.side;
        app.shell.add(panel, side, { rank: 450, type: "Gemloupe" });
      }
      if (now.showLauncherCard) card ??= launcher?.add({ command: OPEN_SIDEBAR, category: CATEGORY, rank: 0 }) ?? null;
      else {
        card?.dispose();
        card = null;
      }
      panel.offer(now.model);
    });
  },
};
