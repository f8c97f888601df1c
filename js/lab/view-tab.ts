/** A view in a tab of its own, which says so when its kernel or the view is gone. */

import { MainAreaWidget } from "@jupyterlab/apputils";
import type { TranslationBundle } from "@jupyterlab/translation";
import { ToolbarButton } from "@jupyterlab/ui-components";
import { Panel, type Widget } from "@lumino/widgets";
import { h } from "../components/dom";
import { gemloupeIcon } from "./icon";
import type { KernelEnds, ViewFacts } from "./kernel-end";
import { titleOf } from "./names";
import { drawn, type Place } from "./place";
import type { Subject, ViewActions } from "./view-actions";

export interface TabOptions {
  /** "own", or the path of a notebook. */
  kernel: string;
  /** The same place, once it is there; null where it does not come back. */
  place: Promise<Place | null>;
  id: string;
  trans: TranslationBundle;
  ends: KernelEnds;
  actions: ViewActions;
  showInPanel(subject: Subject): Promise<void>;
  /** Something that was asked for failed. */
  failed(error: unknown): void;
}

export class ViewTab extends MainAreaWidget<Panel> {
  readonly viewId: string;
  readonly #options: TabOptions;
  readonly #words = h("p", { class: "gl-lab-gone", attrs: { role: "status" } });
  #place: Place | null = null;
  #drawn: Widget | null = null;
  #unlisten: () => void = () => undefined;

  constructor(options: TabOptions) {
    const content = new Panel();
    super({ content });
    const { id, trans } = options;
    this.viewId = id;
    this.#options = options;
    this.addClass("gl-lab-tab-area");
    content.addClass("gl-lab-tab");
    content.node.append(this.#words);
    this.title.label = "Gemloupe";
    this.title.icon = gemloupeIcon;
    this.#tools();
    this.#words.textContent = trans.__("Waiting for the kernel.");
    this.#draw().catch((error) => {
      const words = error instanceof Error ? error.message : String(error);
      this.#end(trans.__("This view is not there any more: %1", words));
    });
  }

  /** Where the view is found again after the page was loaded again: a notebook may have been renamed. */
  get kernel(): string {
    return this.#place?.notebook?.context.path ?? this.#options.kernel;
  }

  /** The view, where it is drawn. */
  get subject(): Subject | null {
    return this.#place && this.#drawn && { place: this.#place, id: this.viewId, node: this.#drawn.node };
  }

  override dispose(): void {
    if (this.isDisposed) return;
    this.#unlisten();
    super.dispose();
  }

  async #draw(): Promise<void> {
    const { actions, trans, ends } = this.#options;
    const place = await this.#options.place;
    if (this.isDisposed) return;
    const gone = trans.__("The kernel of this view was restarted or closed, and the view is gone with it.");
    if (!place) {
      this.#end(gone);
      return;
    }
    const facts: ViewFacts = await actions.look({ place, id: this.viewId, node: null });
    if (this.isDisposed) return;
    this.#place = place;
    this.title.label = titleOf(trans, facts, 24);
    this.title.caption = facts.given;
    this.#words.hidden = true;
    this.#drawn = drawn(place, this.viewId);
    this.content.addWidget(this.#drawn);
    const end = ends.of(place.context);
    const kernel = end.kernel?.id;
    this.#unlisten = end.listen({
      changed: () => {
        const over = end.standing === "restarting" || end.standing === "dead" || end.isDisposed;
        if (over || end.kernel?.id !== kernel) this.#end(gone);
      },
    });
  }

  #end(text: string): void {
    if (this.isDisposed) return;
    this.#unlisten();
    this.#drawn?.dispose();
    this.#drawn = null;
    this.#words.textContent = text;
    this.#words.hidden = false;
  }

  #tools(): void {
    const { trans, actions, showInPanel, failed } = this.#options;
    const add = (name: string, label: string, tooltip: string, run: (subject: Subject) => Promise<void>) => {
      const onClick = () => {
        const { subject } = this;
        if (subject) run(subject).catch(failed);
      };
      this.toolbar.addItem(name, new ToolbarButton({ label, tooltip, onClick }));
    };
    add("panel", trans.__("Show in the panel"), trans.__("Show this view in the sidebar, too"), showInPanel);
    add("cell", trans.__("Insert as cell"), trans.__("A cell that makes exactly this view"), (subject) =>
      actions.insertCell(subject),
    );
    add("html", trans.__("Save as HTML"), trans.__("A page that needs no kernel and no network"), (subject) =>
      actions.save(subject, "html"),
    );
    add("png", trans.__("Save as PNG"), trans.__("A picture of what is shown"), (subject) =>
      actions.save(subject, "png"),
    );
  }
}
