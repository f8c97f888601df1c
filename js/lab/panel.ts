/** The sidebar: kernel, model, prompt, and the views of one kernel. The views are the notebook's own widgets. */

import type { TranslationBundle } from "@jupyterlab/translation";
import { Panel, Widget } from "@lumino/widgets";
import { h } from "../components/dom";
import { isAbort } from "../core/rpc";
import { gemloupeIcon } from "./icon";
import { KernelEnd, type LabEvent, type Opening, type ViewFacts } from "./kernel-end";
import { drawn, type Place } from "./place";
import type { Standing } from "./standing";

/** What is kept over a reload of the page; the views are kept by the kernel. */
export interface Kept {
  /** "follow", "own", or the path of a notebook. */
  kernel: string;
  prompt: string;
  view: string | null;
}

export interface Surroundings {
  trans: TranslationBundle;
  /** The tag of JupyterLab's language. */
  language: string;
  /** Notebooks that are open: path and name. */
  notebooks(): { path: string; name: string }[];
  /** The place that a choice of kernel means; null where there is none yet. */
  place(choice: string): Place | null;
  startOwn(): Promise<void>;
  insert(place: Place, code: string): Promise<void>;
  openInTab(place: Place, view: ViewFacts): void;
  save(name: string, html: string): void;
  keep(kept: Kept): void;
}

const INSTALL = "%pip install 'gemloupe[builtin]'";

export class Sidebar extends Panel {
  readonly #around: Surroundings;
  readonly #trans: TranslationBundle;
  readonly #el: ReturnType<typeof parts>;
  readonly #body = new Panel();
  #kept: Kept;
  #place: Place | null = null;
  #end: KernelEnd | null = null;
  #opening: Opening | null = null;
  #asking = new AbortController();
  #loupe: number | null = null;
  /** Whether the user wants to open one more model. */
  #another = false;
  #shown: { id: string; widget: Widget } | null = null;
  #feature: string | null = null;
  #starting = false;

  constructor(around: Surroundings, kept: Kept) {
    super();
    this.#around = around;
    this.#trans = around.trans;
    this.#kept = kept;
    this.id = "gemloupe-sidebar";
    this.addClass("gl-lab");
    this.title.icon = gemloupeIcon;
    this.title.caption = "Gemloupe";
    this.node.setAttribute("role", "region");
    this.node.setAttribute("aria-label", "Gemloupe");
    this.#el = parts(this.#trans);
    this.#body.addClass("gl-lab-body");
    this.addWidget(new Widget({ node: this.#el.head }));
    this.addWidget(this.#body);
    this.#el.prompt.value = kept.prompt;
    this.#listen();
    this.follow();
  }

  override dispose(): void {
    if (this.isDisposed) return;
    this.#asking.abort();
    this.#end?.dispose();
    super.dispose();
  }

  /** The place may be another one now: a notebook was opened, closed or activated. */
  follow(): void {
    if (this.isDisposed) return;
    this.#fillKernels();
    const place = this.#around.place(this.#choice());
    if (place?.context !== this.#place?.context) {
      this.#asking.abort();
      this.#end?.dispose();
      this.#place = place;
      this.#opening = null;
      this.#say(null);
      this.#end = place
        ? new KernelEnd(
            place.context,
            this.#around.language,
            () => this.#update(),
            (event) => this.#heard(event),
          )
        : null;
    }
    this.#update();
  }

  /** Takes up where an earlier page stopped, unless something was done here already. */
  restore(kept: Kept): void {
    if (this.isDisposed || this.#kept.prompt || this.#kept.kernel !== "follow") return;
    this.#kept = kept;
    this.#el.prompt.value = kept.prompt;
    this.follow();
  }

  /** Stops what runs in the views. */
  stop(): void {
    this.#end?.rpc?.call("stop").catch(() => undefined);
  }

  focusPrompt(): void {
    const { prompt, kernel } = this.#el;
    (prompt.disabled ? kernel : prompt).focus();
  }

  #listen(): void {
    const el = this.#el;
    el.kernel.addEventListener("change", () => {
      this.#kept = { ...this.#kept, kernel: el.kernel.value };
      this.#around.keep(this.#kept);
      this.follow();
    });
    el.model.addEventListener("change", () => {
      this.#another = el.model.value === "open";
      this.#loupe = this.#another ? null : Number(el.model.value.slice(6));
      this.#update();
    });
    el.open.addEventListener("click", () => this.#ask("open", { model: el.name.value.trim() || null }));
    el.plan.addEventListener("click", () => this.#showPlan());
    el.giveUp.addEventListener("click", () => this.#ask("give_up"));
    el.prompt.addEventListener("input", () => {
      this.#kept = { ...this.#kept, prompt: el.prompt.value };
      this.#around.keep(this.#kept);
      this.#update();
    });
    el.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      event.stopPropagation();
      this.#make("heatmap", el.prompt.value);
    });
    for (const [method, button] of Object.entries(el.make))
      button.addEventListener("click", () => this.#make(method, el.prompt.value));
    el.stop.addEventListener("click", () => {
      this.#asking.abort();
      this.stop();
    });
    el.card.addEventListener("click", () => this.#feature && this.#make("card", this.#feature));
    el.toDesk.addEventListener("click", () => this.#feature && this.#make("steer", this.#feature));
    el.views.addEventListener("change", () => this.#show(el.views.value));
    el.tab.addEventListener("click", () => {
      const view = this.#view();
      if (view && this.#place) this.#around.openInTab(this.#place, view);
    });
    el.cell.addEventListener("click", () => this.#insertCell());
    el.save.addEventListener("click", () => this.#saveHtml());
    el.close.addEventListener("click", () => {
      const view = this.#view();
      if (view) this.#ask("close", { id: view.id });
    });
  }

  #view(): ViewFacts | undefined {
    return this.#end?.state?.views.find((view) => view.id === this.#shown?.id);
  }

  // ---- asking the kernel

  async #ask<T>(method: string, params: Record<string, unknown> = {}, signal?: AbortSignal): Promise<T | undefined> {
    const rpc = this.#end?.rpc;
    if (!rpc) return undefined;
    try {
      const value = await rpc.call<T>(method, params, { signal });
      this.#say(null);
      return value;
    } catch (error) {
      if (!isAbort(error)) this.#say(error instanceof Error ? error.message : String(error));
      return undefined;
    }
  }

  async #make(method: string, given: string): Promise<void> {
    const loupe = this.#loupe;
    if (loupe === null || !this.#end?.rpc || (!given.trim() && method !== "steer")) return;
    this.#asking.abort();
    const asking = new AbortController();
    this.#asking = asking;
    const end = this.#end;
    this.#el.working.hidden = false;
    this.#el.stop.disabled = false;
    const params = { loupe, method, given, prompt: this.#el.prompt.value };
    const view = await this.#ask<ViewFacts>("view", params, asking.signal);
    if (this.#asking === asking) this.#el.working.hidden = true;
    if (!view || this.isDisposed || end !== this.#end) return;
    await end.refresh().catch(() => undefined);
    if (this.isDisposed) return;
    this.#show(view.id);
    // The layer picture needs more room than a sidebar has.
    if (method === "evolution" && this.#place) this.#around.openInTab(this.#place, view);
  }

  async #showPlan(): Promise<void> {
    const rows = await this.#ask<[string, string][]>("plan", { model: this.#el.name.value.trim() || null });
    if (!rows) return;
    this.#el.planned.replaceChildren(
      ...rows.flatMap(([what, much]) => [h("dt", { text: what }), h("dd", { text: much })]),
    );
    this.#el.planned.hidden = false;
  }

  async #insertCell(): Promise<void> {
    const view = this.#view();
    const place = this.#place;
    if (!view || !place) return;
    const code = await this.#ask<string>("code", { id: view.id });
    if (code !== undefined) await this.#around.insert(place, code);
  }

  async #saveHtml(): Promise<void> {
    const view = this.#view();
    if (!view) return;
    const html = await this.#ask<string>("html", { id: view.id });
    if (html !== undefined) this.#around.save(`gemloupe-${view.method}.html`, html);
  }

  #heard(event: LabEvent): void {
    if (this.isDisposed) return;
    if (event.event === "opening") this.#opening = event as unknown as Opening;
    if (event.event === "opened") {
      this.#opening = null;
      if (event.state === "failed") this.#say(String(event.error));
      if (event.state === "cancelled") this.#say(this.#trans.__("Opening was cancelled."));
      if (this.#end?.state) this.#end.state.opening = null;
      if (event.state === "opened") this.#another = false;
    }
    if (event.event === "selection") {
      if (event.id === this.#shown?.id) this.#feature = typeof event.feature === "string" ? event.feature : null;
      this.#update();
      return;
    }
    if (event.event !== "opening") this.#end?.refresh().catch(() => undefined);
    this.#update();
  }

  // ---- showing

  #say(text: string | null): void {
    this.#el.problem.textContent = text ?? "";
    this.#el.problem.hidden = text === null;
  }

  /** The kernel that was chosen; a notebook that is not open (yet) counts as none. */
  #choice(): string {
    const { kernel } = this.#kept;
    return kernel === "own" || this.#around.notebooks().some(({ path }) => path === kernel) ? kernel : "follow";
  }

  #fillKernels(): void {
    const trans = this.#trans;
    const open = this.#around.notebooks();
    const followed = this.#around.place("follow");
    const options: [string, string][] = [
      [
        "follow",
        followed ? trans.__("Active notebook: %1", followed.name) : trans.__("Active notebook (none is open)"),
      ],
      ["own", trans.__("A kernel of its own")],
      ...open.map(({ path, name }): [string, string] => [path, name]),
    ];
    fill(this.#el.kernel, options, this.#choice());
  }

  #update(): void {
    if (this.isDisposed) return;
    const { state, rpc } = this.#end ?? {};
    const standing = this.#end?.standing ?? "none";
    const joined = (standing === "ready" || standing === "busy") && !!rpc && !!state;
    this.node.dataset.standing = standing;
    this.#showStanding(standing);
    this.#opening = this.#opening ?? state?.opening ?? null;
    if (!joined) this.#opening = null;
    this.#showModels(joined);
    const loupe = state?.loupes.find((one) => one.number === this.#loupe);
    const el = this.#el;
    el.prompt.disabled = !loupe;
    el.reading.hidden = !joined;
    for (const [method, button] of Object.entries(el.make)) {
      button.hidden = !!loupe && !loupe.methods.includes(method);
      button.disabled = !loupe || (!el.prompt.value.trim() && method !== "steer");
    }
    if (!joined) el.working.hidden = true;
    const views = state?.views ?? [];
    el.stop.disabled = !joined || (views.length === 0 && el.working.hidden !== false);
    const wanted = views.find((view) => view.id === this.#kept.view) ?? views.at(-1);
    if (!joined || !wanted) this.#hideView();
    else if (this.#shown?.id !== wanted.id) this.#show(wanted.id);
    el.viewBar.hidden = !this.#shown;
    fill(
      el.views,
      views.map((view): [string, string] => [view.id, this.#titleOf(view)]),
      this.#shown?.id ?? "",
    );
    el.chosen.hidden = !this.#shown || !this.#feature || !loupe;
    el.feature.textContent = this.#feature ?? "";
  }

  #titleOf(view: ViewFacts): string {
    const names = titles(this.#trans);
    const given = view.given.length > 32 ? `${view.given.slice(0, 31)}…` : view.given;
    return `${names[view.method] ?? view.method}${given ? `: ${given}` : ""}`;
  }

  #showModels(joined: boolean): void {
    const el = this.#el;
    const trans = this.#trans;
    const loupes = this.#end?.state?.loupes ?? [];
    if (joined && !this.#another && !loupes.some((one) => one.number === this.#loupe))
      this.#loupe = loupes.at(-1)?.number ?? null;
    const options = loupes.map((one): [string, string] => [
      `loupe:${one.number}`,
      trans.__("%1 on %2, %3 sites (running)", one.model, one.device, one.sites),
    ]);
    fill(el.model, [...options, ["open", trans.__("Open a model…")]], this.#loupe ? `loupe:${this.#loupe}` : "open");
    el.modelRow.hidden = !joined;
    const opening = this.#opening;
    el.openRow.hidden = !joined || this.#loupe !== null || opening !== null;
    if (el.openRow.hidden) el.planned.hidden = true;
    el.progress.hidden = !joined || opening === null;
    if (!opening) return;
    const name = opening.model ?? trans.__("the built-in model");
    el.progressText.textContent = opening.what
      ? trans.__("Opening %1: %2", name, opening.what)
      : trans.__("Opening %1", name);
    if (opening.share === null) el.bar.removeAttribute("value");
    else el.bar.value = opening.share;
  }

  #showStanding(standing: Standing): void {
    const trans = this.#trans;
    const el = this.#el;
    const own = this.#kept.kernel === "own";
    const words: Record<Standing, string> = {
      none: this.#starting
        ? trans.__("A kernel is being started.")
        : own || !this.#place
          ? trans.__("There is no kernel. Open a notebook, or start a kernel for the sidebar alone.")
          : trans.__("The notebook has no kernel."),
      starting: trans.__("The kernel is starting."),
      joining: trans.__("The sidebar is connecting to the kernel."),
      ready: trans.__("The kernel is ready."),
      busy: trans.__("The kernel runs a cell. The sidebar still answers."),
      waiting: trans.__("The kernel has not answered yet: it is busy, and answers when its cell has ended."),
      restarting: trans.__("The kernel is restarting. Its models and views are gone."),
      dead: trans.__("The kernel is dead."),
      offline: trans.__("The connection to the kernel is lost. JupyterLab tries to get it back."),
      language: trans.__("This kernel speaks %1. Gemloupe needs a Python kernel.", this.#end?.language ?? ""),
      missing: trans.__("Gemloupe is not installed in this kernel. Install it with:"),
      old: trans.__(
        "The kernel's gemloupe is of another version than the sidebar's. Update it, then restart the kernel:",
      ),
      failed: trans.__("The kernel could not be asked: %1", this.#end?.fault ?? ""),
    };
    el.standing.textContent = words[standing];
    el.command.textContent = INSTALL;
    el.command.hidden = standing !== "missing" && standing !== "old";
    const session = this.#place?.context;
    const startOwn: Action = [trans.__("Start a kernel"), () => this.#startOwn()];
    const again: Action = [trans.__("Try again"), () => this.#end?.again()];
    const restart: Action = [trans.__("Restart the kernel"), () => session?.restartKernel()];
    const choose: Action = [trans.__("Use a kernel of its own"), () => this.#startOwn()];
    const place = this.#place;
    const actions: Partial<Record<Standing, Action[]>> = {
      none: this.#starting ? [] : [startOwn],
      waiting: [[trans.__("Interrupt the cell"), () => session?.session?.kernel?.interrupt()], choose],
      dead: [restart, choose],
      offline: [[trans.__("Reconnect"), () => session?.session?.kernel?.reconnect()]],
      language: [choose],
      missing: place ? [[trans.__("Insert as cell"), () => this.#around.insert(place, INSTALL)], again] : [again],
      old: [again, restart],
      failed: [again],
    };
    const wanted = actions[standing] ?? [];
    const names = wanted.map(([name]) => name).join("|");
    if (el.actions.dataset.names === names) return;
    el.actions.dataset.names = names;
    el.actions.replaceChildren(
      ...wanted.map(([name, run]) => {
        const button = h("button", { class: "gl-lab-button", text: name, attrs: { type: "button" } });
        button.addEventListener("click", () => {
          Promise.resolve(run()).catch((error) => this.#say(String(error?.message ?? error)));
        });
        return button;
      }),
    );
  }

  async #startOwn(): Promise<void> {
    this.#kept = { ...this.#kept, kernel: "own" };
    this.#around.keep(this.#kept);
    this.#starting = true;
    this.follow();
    try {
      await this.#around.startOwn();
      this.#say(null);
    } catch (error) {
      this.#say(
        this.#trans.__("No kernel could be started: %1", error instanceof Error ? error.message : String(error)),
      );
    } finally {
      this.#starting = false;
      this.follow();
    }
  }

  #hideView(): void {
    this.#shown?.widget.dispose();
    this.#shown = null;
    this.#feature = null;
  }

  #show(id: string): void {
    const place = this.#place;
    if (!place || this.isDisposed) return;
    if (this.#shown?.id !== id) {
      this.#hideView();
      const widget = drawn(place, id);
      this.#body.addWidget(widget);
      this.#shown = { id, widget };
    }
    if (this.#kept.view !== id) {
      this.#kept = { ...this.#kept, view: id };
      this.#around.keep(this.#kept);
    }
    this.#update();
  }
}

type Action = [name: string, run: () => unknown];

/** What the views are called. */
export function titles(trans: TranslationBundle): Record<string, string> {
  return {
    heatmap: trans.__("Tokens"),
    table: trans.__("Table"),
    steer: trans.__("Steering"),
    evolution: trans.__("Layers"),
    search: trans.__("Search"),
    card: trans.__("Feature"),
  };
}

/** Fills a select, and leaves it alone where nothing changed, so that an open list stays open. */
function fill(select: HTMLSelectElement, options: [value: string, text: string][], chosen: string): void {
  const key = JSON.stringify(options);
  if (select.dataset.options !== key) {
    select.dataset.options = key;
    select.replaceChildren(...options.map(([value, text]) => h("option", { text, attrs: { value } })));
  }
  select.value = chosen;
}

function parts(trans: TranslationBundle) {
  const button = (text: string, caption?: string) =>
    h("button", { class: "gl-lab-button", text, attrs: { type: "button", title: caption } });
  const label = (text: string, field: HTMLElement) => h("label", { class: "gl-lab-field" }, h("span", { text }), field);
  const kernel = h("select", {});
  const standing = h("p", { class: "gl-lab-standing", attrs: { role: "status" } });
  const command = h("code", { class: "gl-lab-command" });
  const actions = h("div", { class: "gl-lab-row" });
  const model = h("select", {});
  const name = h("input", {
    attrs: { type: "text", placeholder: trans.__("built-in, or gemma-2-2b, or a folder"), spellcheck: "false" },
  });
  const open = button(trans.__("Open"));
  const plan = button(trans.__("What it costs"));
  const planned = h("dl", { class: "gl-lab-plan" });
  planned.hidden = true;
  const openRow = h("div", {}, label(trans.__("Model to open"), name), h("div", { class: "gl-lab-row" }, open, plan));
  const progressText = h("span", { attrs: { role: "status" } });
  const bar = h("progress", { attrs: { max: 1, "aria-label": trans.__("Opening the model") } });
  const giveUp = button(trans.__("Cancel"));
  const progress = h("div", { class: "gl-lab-progress" }, progressText, bar, giveUp);
  const modelRow = h("div", {}, label(trans.__("Model"), model), openRow, planned, progress);
  const prompt = h("textarea", { attrs: { rows: 3, placeholder: trans.__("A text to look into") } });
  const names = titles(trans);
  const make: Record<string, HTMLButtonElement> = {
    heatmap: button(names.heatmap, trans.__("Show the features of every token (Ctrl Enter)")),
    table: button(names.table, trans.__("List the features of the text")),
    steer: button(names.steer, trans.__("Continue the text with features turned up or down")),
    evolution: button(names.evolution, trans.__("Show how features change from layer to layer, in a tab")),
    search: button(names.search, trans.__("Find features by words")),
  };
  const stop = button(trans.__("Stop"), trans.__("Stop what runs"));
  const working = h("span", {
    class: "gl-lab-working",
    text: trans.__("The model is reading…"),
    attrs: { role: "status" },
  });
  working.hidden = true;
  const reading = h(
    "div",
    {},
    label(trans.__("Text"), prompt),
    h("div", { class: "gl-lab-row" }, ...Object.values(make), stop, working),
  );
  const problem = h("p", { class: "gl-lab-problem", attrs: { role: "alert" } });
  problem.hidden = true;
  const feature = h("code", {});
  const card = button(trans.__("Open its card"));
  const toDesk = button(trans.__("Add to steering"));
  const chosen = h("div", { class: "gl-lab-row gl-lab-chosen" }, feature, card, toDesk);
  const views = h("select", { attrs: { "aria-label": trans.__("View") } });
  const tab = button(trans.__("Open in a tab"));
  const cell = button(trans.__("Insert as cell"), trans.__("A cell that makes exactly this view"));
  const save = button(trans.__("Save as HTML"));
  const close = button(trans.__("Close"), trans.__("Close this view"));
  const viewBar = h("div", {}, views, h("div", { class: "gl-lab-row" }, tab, cell, save, close));
  const head = h(
    "div",
    { class: "gl-lab-head" },
    label(trans.__("Kernel"), kernel),
    standing,
    command,
    actions,
    modelRow,
    reading,
    problem,
    viewBar,
    chosen,
  );
  return {
    ...{ head, kernel, standing, command, actions, modelRow, model, openRow, name, open, plan, planned },
    ...{ progress, progressText, bar, giveUp, reading, prompt, make, stop, working, problem },
    ...{ chosen, feature, card, toDesk, viewBar, views, tab, cell, save, close },
  };
}
