/** What can be done with a view wherever it stands: in the panel, in a tab, among a notebook's outputs. */

import type { JupyterFrontEnd } from "@jupyterlab/application";
import { Notification } from "@jupyterlab/apputils";
import { type INotebookTracker, NotebookActions } from "@jupyterlab/notebook";
import type { TranslationBundle } from "@jupyterlab/translation";
import { type KernelEnds, NotJoined, type ViewFacts } from "./kernel-end";
import { standingWords } from "./names";
import { pngOf, wholeOf } from "./picture";
import type { Place } from "./place";
import { download, type FileKind } from "./save";

/** A view: the kernel's id of it, the kernel, and what shows it. */
export interface Subject {
  place: Place;
  id: string;
  node: HTMLElement | null;
}

export class ViewActions {
  readonly #app: JupyterFrontEnd;
  readonly #notebooks: INotebookTracker;
  readonly #ends: KernelEnds;
  readonly #trans: TranslationBundle;

  constructor(app: JupyterFrontEnd, notebooks: INotebookTracker, ends: KernelEnds, trans: TranslationBundle) {
    this.#app = app;
    this.#notebooks = notebooks;
    this.#ends = ends;
    this.#trans = trans;
  }

  async #ask<T>(subject: Subject, method: string): Promise<T> {
    const { context, notebook } = subject.place;
    const rpc = await this.#ends
      .of(context)
      .joined()
      .catch((error) => {
        if (!(error instanceof NotJoined)) throw error;
        const about = { notebook: notebook !== null, language: error.language, fault: error.message };
        const words = standingWords(this.#trans, error.standing, about);
        throw new Error(words);
      });
    return rpc.call<T>(method, { id: subject.id });
  }

  /** What the kernel knows of the view. */
  look(subject: Subject): Promise<ViewFacts> {
    return this.#ask(subject, "look");
  }

  /** Shows a notebook's widget among the panel's views, too. */
  adopt(subject: Subject): Promise<ViewFacts> {
    return this.#ask(subject, "adopt");
  }

  async insertCell(subject: Subject): Promise<void> {
    await this.insert(subject.place, await this.#ask<string>(subject, "code"));
  }

  /** Puts code into a cell below the active one of the kernel's notebook; without a notebook, into a new one. */
  async insert(place: Place, code: string): Promise<void> {
    const kernel = place.context.session?.kernel?.id;
    let notebook =
      place.notebook ?? this.#notebooks.find((one) => !!kernel && one.sessionContext.session?.kernel?.id === kernel);
    if (!notebook) {
      notebook = await this.#app.commands.execute("notebook:create-new", { kernelId: kernel });
      await notebook?.context.ready;
    }
    if (!notebook) return;
    const { content } = notebook;
    const empty = content.activeCell?.model.type === "code" && !content.activeCell.model.sharedModel.getSource().trim();
    if (!empty) NotebookActions.insertBelow(content);
    if (content.activeCell?.model.type !== "code") NotebookActions.changeCellType(content, "code");
    content.activeCell?.model.sharedModel.setSource(code);
    this.#app.shell.activateById(notebook.id);
  }

  async save(subject: Subject, kind: FileKind): Promise<void> {
    const { method } = await this.look(subject);
    const name = `gemloupe-${method}`;
    if (kind === "html") return download(name, kind, await this.#ask<string>(subject, "html"));
    const root = subject.node && wholeOf(subject.node);
    const undrawn = this.#trans.__("The view is not drawn yet.");
    if (!root) throw new Error(undrawn);
    const { png, cut } = await pngOf(root);
    download(name, kind, png);
    if (cut) Notification.info(this.#trans.__("The picture ends before the view does. Save it as HTML to have all."));
  }
}
