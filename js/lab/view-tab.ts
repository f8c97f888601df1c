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
  place: Place;
  id: string;
  trans: TranslationBundle;
  ends: KernelEnds;
  actions: ViewActions;
  showInPanel(subject: Subject): Promise<void>;
  /** Something that was asked for failed. */
  failed(error: unknown): void;
}

export class ViewTab extends MainAreaWidget<Panel> {
  readonly place: Place;
  readonly viewId: string;
  readonly #options: TabOptions;
  readonly #words = h("p", { class: "gl-lab-gone", attrs: { role: "status" } });
  readonly #unlisten: () => void;
  #kernel: string | undefined;
  #drawn: Widget | null = null;
  #gone = false;

  constructor(options: TabOptions) {
    const content = new Panel();
    super({ content });
    const { place, id, trans, ends } = options;
    this.place = place;
    this.viewId = id;
    this.#options = options;
    this.addClass("gl-lab-tab-area");
    content.addClass("gl-lab-tab");
    content.node.append(this.#words);
    this.title.label = trans.__("Gemloupe");
    this.title.icon = gemloupeIcon;
    this.#tools();
    const end = ends.of(place.context);
    const look = () => {
      const now = end.kernel?.id;
      const restarting = end.standing === "restarting" || end.standing === "dead" || end.isDisposed;
      if (this.#drawn && (restarting || now !== this.#kernel))
        this.#say(trans.__("The kernel of this view was restarted or closed, and the view is gone with it."));
    };
    this.#unlisten = end.listen({ changed: look });
    this.#words.textContent = trans.__("Waiting for the kernel.");
    this.#draw().catch((error) =>
      this.#say(
        trans.__("This view is not there any more: %1", error instanceof Error ? error.message : String(error)),
      ),
    );
  }

  get subject(): Subject {
    return { place: this.place, id: this.viewId, node: this.#drawn?.node ?? null };
  }

  override dispose(): void {
    if (this.isDisposed) return;
    this.#unlisten();
    super.dispose();
  }

  async #draw(): Promise<void> {
    const { actions, trans, ends } = this.#options;
    const facts: ViewFacts = await actions.look(this.subject);
    if (this.isDisposed || this.#gone) return;
    this.#kernel = ends.of(this.place.context).kernel?.id;
    this.title.label = titleOf(trans, facts, 24);
    this.title.caption = facts.given;
    this.#words.hidden = true;
    this.#drawn = drawn(this.place, this.viewId);
    this.content.addWidget(this.#drawn);
  }

  #say(text: string): void {
    if (this.isDisposed) return;
    this.#gone = true;
    this.#drawn?.dispose();
    this.#drawn = null;
    this.#words.textContent = text;
    this.#words.hidden = false;
  }

  #tools(): void {
    const { trans, actions, showInPanel, failed } = this.#options;
    const add = (name: string, label: string, tooltip: string, run: () => Promise<void>) => {
      const onClick = () => void run().catch(failed);
      this.toolbar.addItem(name, new ToolbarButton({ label, tooltip, onClick }));
    };
    add("panel", trans.__("Show in the panel"), trans.__("Show this view in the sidebar, too"), () =>
      showInPanel(this.subject),
    );
    add("cell", trans.__("Insert as cell"), trans.__("A cell that makes exactly this view"), () =>
      actions.insertCell(this.subject),
    );
    add("html", trans.__("Save as HTML"), trans.__("A page that needs no kernel and no network"), () =>
      actions.save(this.subject, "html"),
    );
    add("png", trans.__("Save as PNG"), trans.__("A picture of what is shown"), () =>
      actions.save(this.subject, "png"),
    );
  }
}
