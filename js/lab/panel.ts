/** The sidebar: kernel, model, prompt, and the views of one kernel. The views are the notebook's own widgets. */

import type { TranslationBundle } from "@jupyterlab/translation";
import type { Message } from "@lumino/messaging";
import { Panel, Widget } from "@lumino/widgets";
import { freshId, h } from "../components/dom";
import { parseFeature } from "../core/feature";
import { isAbort } from "../core/rpc";
import { gemloupeIcon } from "./icon";
import type { KernelEnd, KernelEnds, LabEvent, Opening, ViewFacts } from "./kernel-end";
import { standingWords, titleOf, titles } from "./names";
import { drawn, type Place } from "./place";
import type { FileKind } from "./save";
import type { Standing } from "./standing";
import type { Subject, ViewActions } from "./view-actions";

/** What is kept over a reload of the page; the views are kept by the kernel. */
export interface Kept {
  /** "follow", "own", or the path of a notebook. */
  kernel: string;
  prompt: string;
  view: string | null;
}

/** What the user set. */
export interface Choices {
  /** What is offered to open; empty for the built-in model. */
  model: string;
  /** Open it as soon as the sidebar's own kernel is there. */
  openAtOnce: boolean;
  /** Show the layer picture in a tab, which has more room. */
  layersInTab: boolean;
}

export interface Surroundings {
  trans: TranslationBundle;
  ends: KernelEnds;
  actions: ViewActions;
  choices(): Choices;
  /** Notebooks that are open: path and name. */
  notebooks(): { path: string; name: string }[];
  /** The place that a choice of kernel means; null where there is none yet. */
  place(choice: string): Place | null;
  startOwn(): Promise<void>;
  openInTab(place: Place, id: string): void;
  keep(kept: Kept): void;
}

const INSTALL = "%pip install 'gemloupe[builtin]'";
/** Models that are offered by name; any other, or a folder, may be typed. */
const MODELS = ["gemma-2-2b", "gemma-2-2b-it", "gemma-2-9b", "gemma-2-9b-it", "gemma-3-270m", "gemma-3-1b-pt"];
/** Milliseconds after which it is said for how long the model has been reading. */
const LONG = 3000;
/** Milliseconds after which a kernel that still starts is no longer only waited for. */
const SLOW = 20_000;

export class Sidebar extends Panel {
  readonly #around: Surroundings;
  readonly #trans: TranslationBundle;
  readonly #el: ReturnType<typeof parts>;
  readonly #body = new Panel();
  #kept: Kept;
  #place: Place | null = null;
  #end: KernelEnd | null = null;
  #unlisten: () => void = () => undefined;
  #opening: Opening | null = null;
  #asking = new AbortController();
  #loupe: number | null = null;
  /** Whether the user wants to open one more model. */
  #another = false;
  #shown: { id: string; widget: Widget } | null = null;
  #starting = false;
  #offered = "";
  #clock: ReturnType<typeof setInterval> | undefined;
  /** The standing of the kernel, and whether it has been so for too long. */
  #stood: Standing = "none";
  #slow = false;
  #slowTimer: ReturnType<typeof setTimeout> | undefined;

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
    clearInterval(this.#clock);
    clearTimeout(this.#slowTimer);
    this.#unlisten();
    super.dispose();
  }

  /** No kernel is asked for anything before somebody looks. */
  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this.follow();
  }

  /** The place may be another one now: a notebook was opened, closed or activated. */
  follow(): void {
    if (this.isDisposed || !this.isVisible) return;
    this.#fillKernels();
    const place = this.#around.place(this.#choice());
    if (place?.context !== this.#place?.context) {
      this.#asking.abort();
      this.#unlisten();
      this.#hideView();
      this.#place = place;
      this.#opening = null;
      this.#another = false;
      this.#say(null);
      this.#end = place && this.#around.ends.of(place.context);
      this.#unlisten =
        this.#end?.listen({ changed: () => this.#update(), heard: (event) => this.#heard(event) }) ?? (() => undefined);
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

  /** The view that is shown. */
  get subject(): Subject | null {
    const place = this.#place;
    return place && this.#shown && { place, id: this.#shown.id, node: this.#shown.widget.node };
  }

  /** Shows a view of a kernel, also one that a notebook made. The panel is visible already. */
  async adopt(subject: Subject): Promise<void> {
    const { notebook } = subject.place;
    const followed = this.#around.place("follow");
    const kernel = !notebook ? "own" : followed?.context === subject.place.context ? "follow" : notebook.context.path;
    this.#keep({ kernel });
    this.follow();
    const view = await this.#around.actions.adopt(subject);
    await this.#end?.refresh();
    this.#show(view.id);
  }

  /** Shows the features of a text, once there is a model; until then the text waits in its field. */
  async look(text: string): Promise<void> {
    this.#el.prompt.value = text;
    this.#keep({ prompt: text });
    this.#update();
    await this.#make("heatmap", text);
  }

  #keep(changed: Partial<Kept>): void {
    this.#kept = { ...this.#kept, ...changed };
    this.#around.keep(this.#kept);
  }

  /** What is offered to open, where nothing was typed. */
  offer(model: string): void {
    const { name } = this.#el;
    if (name.value === this.#offered) name.value = model;
    this.#offered = model;
  }

  focusPrompt(): void {
    const { prompt, kernel } = this.#el;
    (prompt.offsetParent ? prompt : kernel).focus();
  }

  #listen(): void {
    const el = this.#el;
    el.kernel.addEventListener("change", () => {
      this.#keep({ kernel: el.kernel.value });
      this.follow();
    });
    el.model.addEventListener("change", () => {
      this.#another = el.model.value === "open";
      this.#loupe = this.#another ? null : Number(el.model.value.slice(6));
      this.#update();
    });
    el.closeModel.addEventListener("click", () => this.#ask("close_loupe", { number: this.#loupe }));
    el.open.addEventListener("click", () => this.#open());
    el.name.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.#open();
    });
    el.plan.addEventListener("click", () => this.#showPlan());
    el.name.addEventListener("input", () => {
      el.planned.hidden = true;
    });
    el.giveUp.addEventListener("click", () => this.#ask("give_up"));
    el.prompt.addEventListener("input", () => {
      this.#keep({ prompt: el.prompt.value });
      this.#update();
    });
    el.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      event.stopPropagation();
      this.#make(this.#isFeature() ? "card" : "heatmap", el.prompt.value);
    });
    for (const [method, button] of Object.entries(el.make))
      button.addEventListener("click", () => this.#make(method, el.prompt.value));
    el.stop.addEventListener("click", () => {
      this.#asking.abort();
      this.stop();
    });
    const chosen = (method: string) => {
      const feature = this.#view()?.feature;
      if (feature) this.#make(method, feature, this.#view()?.loupe);
    };
    el.card.addEventListener("click", () => chosen("card"));
    el.toDesk.addEventListener("click", () => chosen("steer"));
    el.views.addEventListener("change", () => this.#show(el.views.value));
    el.tab.addEventListener("click", () => {
      const view = this.#view();
      if (view && this.#place) this.#around.openInTab(this.#place, view.id);
    });
    el.cell.addEventListener("click", () => this.#act((subject) => this.#around.actions.insertCell(subject)));
    const save = (kind: FileKind) => () => this.#act((subject) => this.#around.actions.save(subject, kind));
    el.html.addEventListener("click", save("html"));
    el.png.addEventListener("click", save("png"));
    el.close.addEventListener("click", () => {
      const view = this.#view();
      if (view) this.#ask("close", { id: view.id });
    });
  }

  #view(): ViewFacts | undefined {
    return this.#end?.state?.views.find((view) => view.id === this.#shown?.id);
  }

  #isFeature(): boolean {
    return parseFeature(this.#el.prompt.value.trim()) !== null;
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
      if (!isAbort(error)) this.#say(wordsOf(error));
      return undefined;
    }
  }

  async #act(run: (subject: Subject) => Promise<void>): Promise<void> {
    const { subject } = this;
    if (!subject) return;
    try {
      await run(subject);
      this.#say(null);
    } catch (error) {
      if (!isAbort(error)) this.#say(wordsOf(error));
    }
  }

  #open(): void {
    if (this.#el.planned.hidden) this.#showPlan();
    this.#ask("open", { model: this.#el.name.value.trim() || null });
  }

  async #make(method: string, given: string, of?: number | null): Promise<void> {
    const loupe = of ?? this.#loupe;
    const end = this.#end;
    if (loupe === null || !end?.rpc || (!given.trim() && method !== "steer")) return;
    this.#asking.abort();
    const asking = new AbortController();
    this.#asking = asking;
    this.#work(asking);
    const params = { loupe, method, given: method === "card" ? given.trim() : given, prompt: this.#text() };
    const view = await this.#ask<ViewFacts>("view", params, asking.signal);
    if (this.#asking === asking) this.#work(null);
    if (!view || this.isDisposed || end !== this.#end) return;
    await end.refresh().catch(() => undefined);
    if (this.isDisposed || end !== this.#end) return;
    if (method === "evolution" && this.#place && this.#around.choices().layersInTab)
      this.#around.openInTab(this.#place, view.id);
    else this.#show(view.id);
  }

  /** The text that goes with a feature: the one typed, unless that is a feature itself. */
  #text(): string {
    if (!this.#isFeature()) return this.#el.prompt.value;
    const view = this.#view();
    return view && ["heatmap", "table", "evolution", "steer"].includes(view.method) ? view.given : "";
  }

  /** Says that the model works, and after a while for how long. */
  #work(asking: AbortController | null): void {
    const { working, stop } = this.#el;
    clearInterval(this.#clock);
    working.hidden = asking === null;
    if (!asking) {
      this.#update();
      return;
    }
    const since = performance.now();
    working.textContent = this.#trans.__("The model is reading…");
    stop.disabled = false;
    this.#clock = setInterval(() => {
      const time = performance.now() - since;
      if (asking.signal.aborted) this.#work(null);
      else if (time > LONG)
        working.textContent = this.#trans.__("The model is reading, for %1 s now.", Math.round(time / 1000));
    }, 1000);
  }

  async #showPlan(): Promise<void> {
    const { planned } = this.#el;
    planned.replaceChildren(h("dt", { text: this.#trans.__("What it costs is being estimated…") }));
    planned.hidden = false;
    const rows = await this.#ask<[string, string][]>("plan", { model: this.#el.name.value.trim() || null });
    planned.hidden = !rows;
    planned.replaceChildren(
      ...(rows ?? []).flatMap(([what, much]) => [h("dt", { text: what }), h("dd", { text: much })]),
    );
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
      this.#el.planned.hidden = true;
    }
    if (event.event === "selection") {
      const view = this.#end?.state?.views.find((one) => one.id === event.id);
      if (view) view.feature = typeof event.feature === "string" ? event.feature : null;
    }
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
    this.#opening = joined ? (this.#opening ?? state.opening ?? null) : null;
    this.#showModels(joined);
    const loupe = state?.loupes.find((one) => one.number === this.#loupe);
    const el = this.#el;
    el.reading.hidden = !joined || !loupe;
    const text = el.prompt.value.trim();
    for (const [method, button] of Object.entries(el.make)) {
      button.hidden = !!loupe && !loupe.methods.includes(method);
      button.disabled = !loupe || (method === "card" ? !this.#isFeature() : !text && method !== "steer");
    }
    if (!joined && !el.working.hidden) {
      clearInterval(this.#clock);
      el.working.hidden = true;
    }
    const views = state?.views ?? [];
    el.stop.disabled = !joined || (views.length === 0 && el.working.hidden !== false);
    const wanted = views.find((view) => view.id === this.#kept.view) ?? views.at(-1);
    if (!state || !wanted) this.#hideView();
    else if (this.#shown?.id !== wanted.id) this.#show(wanted.id);
    el.viewBar.hidden = !this.#shown;
    fill(
      el.views,
      views.map((view): [string, string] => [view.id, this.#titleOf(view)]),
      this.#shown?.id ?? "",
    );
    const view = this.#view();
    el.chosen.hidden = !view?.feature || view.loupe === null;
    el.feature.textContent = view?.feature ?? "";
    el.card.hidden = view?.method === "card";
    el.close.title =
      view?.own === false
        ? this.#trans.__("Take it off the panel; the notebook keeps it")
        : this.#trans.__("Close this view");
  }

  #titleOf(view: ViewFacts): string {
    const title = titleOf(this.#trans, view);
    return view.own ? title : this.#trans.__("%1 (the notebook's)", title);
  }

  #showModels(joined: boolean): void {
    const el = this.#el;
    const trans = this.#trans;
    const loupes = this.#end?.state?.loupes ?? [];
    if (joined && !this.#another && !loupes.some((one) => one.number === this.#loupe))
      this.#loupe = loupes.at(-1)?.number ?? null;
    const options = loupes.map((one): [string, string] => [
      `loupe:${one.number}`,
      trans.__("%1 · %2", one.model, one.device),
    ]);
    fill(el.model, [...options, ["open", trans.__("Open a model…")]], this.#loupe ? `loupe:${this.#loupe}` : "open");
    el.modelRow.hidden = !joined;
    el.modelField.hidden = loupes.length === 0;
    el.closeModel.hidden = !loupes.some((one) => one.mine && one.number === this.#loupe);
    const opening = this.#opening;
    el.openRow.hidden = !joined || this.#loupe !== null || opening !== null;
    if (!joined || (el.openRow.hidden && !opening)) el.planned.hidden = true;
    el.progress.hidden = !joined || opening === null;
    if (!opening) return;
    const name = opening.model ?? trans.__("the built-in model");
    el.giveUp.disabled = opening.cancelling === true;
    if (opening.cancelling) el.progressText.textContent = trans.__("Opening %1 ends at its next step.", name);
    else
      el.progressText.textContent = opening.what
        ? trans.__("Opening %1: %2", name, opening.what)
        : trans.__("Opening %1", name);
    if (opening.share === null) el.bar.removeAttribute("value");
    else el.bar.value = opening.share;
  }

  #watchStanding(standing: Standing): void {
    if (standing === this.#stood) return;
    this.#stood = standing;
    this.#slow = false;
    clearTimeout(this.#slowTimer);
    if (standing !== "starting" && standing !== "restarting") return;
    this.#slowTimer = setTimeout(() => {
      this.#slow = true;
      this.#update();
    }, SLOW);
  }

  #showStanding(standing: Standing): void {
    this.#watchStanding(standing);
    const trans = this.#trans;
    const el = this.#el;
    el.standing.textContent =
      this.#starting && standing === "none"
        ? trans.__("A kernel is being started.")
        : standingWords(trans, standing, {
            notebook: !!this.#place?.notebook,
            language: this.#end?.language ?? "",
            fault: this.#end?.fault ?? "",
          });
    el.command.textContent = INSTALL;
    el.command.hidden = standing !== "missing" && standing !== "old";
    // Which place is meant is only known when a button is pressed.
    const session = () => this.#place?.context;
    const again: Action = [trans.__("Try again"), () => this.#end?.again()];
    const restart: Action = [trans.__("Restart the kernel"), () => session()?.restartKernel()];
    const own: Action = [trans.__("Use a kernel of its own"), () => this.#startOwn()];
    const theirs: Action = [trans.__("Start the notebook's kernel"), () => session()?.startKernel()];
    const insert: Action = [
      trans.__("Insert as cell"),
      () => this.#place && this.#around.actions.insert(this.#place, INSTALL),
    ];
    const actions: Partial<Record<Standing, Action[]>> = {
      starting: this.#slow ? [restart, own] : [],
      restarting: this.#slow ? [restart, own] : [],
      none: this.#place?.notebook ? [theirs, own] : [[trans.__("Start a kernel"), () => this.#startOwn()]],
      waiting: [[trans.__("Interrupt the cell"), () => session()?.session?.kernel?.interrupt()], own],
      dead: [restart, own],
      offline: [[trans.__("Reconnect"), () => session()?.session?.kernel?.reconnect()]],
      language: [own],
      missing: [insert, again, own],
      old: [insert, restart, again],
      failed: [again, restart],
    };
    const wanted = this.#starting ? [] : (actions[standing] ?? []);
    const names = wanted.map(([name]) => name).join("|");
    if (el.actions.dataset.names === names) return;
    el.actions.dataset.names = names;
    el.actions.replaceChildren(
      ...wanted.map(([name, run]) => {
        const button = h("button", { class: "gl-lab-button", text: name, attrs: { type: "button" } });
        button.addEventListener("click", async () => {
          try {
            await run();
            this.#say(null);
          } catch (error) {
            this.#say(wordsOf(error));
          }
        });
        return button;
      }),
    );
  }

  async #startOwn(): Promise<void> {
    this.#keep({ kernel: "own" });
    this.#starting = true;
    this.follow();
    try {
      await this.#around.startOwn();
      this.#say(null);
    } catch (error) {
      this.#say(this.#trans.__("No kernel could be started: %1", wordsOf(error)));
      return;
    } finally {
      this.#starting = false;
      this.follow();
    }
    if (!this.#around.choices().openAtOnce || !this.#end) return;
    // What keeps it from being joined is said where the kernel's standing is.
    const rpc = await this.#end.joined().catch(() => null);
    if (rpc && !this.isDisposed && this.#end?.state?.loupes.length === 0) this.#open();
  }

  #hideView(): void {
    this.#shown?.widget.dispose();
    this.#shown = null;
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
    if (this.#kept.view !== id) this.#keep({ view: id });
    this.#update();
  }
}

type Action = [name: string, run: () => unknown];

function wordsOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
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
  const row = (...children: HTMLElement[]) => h("div", { class: "gl-lab-row" }, ...children);
  const kernel = h("select", {});
  const standing = h("p", { class: "gl-lab-standing", attrs: { role: "status" } });
  const command = h("code", { class: "gl-lab-command" });
  const actions = h("div", { class: "gl-lab-row" });
  const model = h("select", {});
  const closeModel = button("×", trans.__("Close the model and free its memory"));
  closeModel.setAttribute("aria-label", trans.__("Close the model"));
  const modelField = h("div", { class: "gl-lab-beside" }, label(trans.__("Model"), model), closeModel);
  const known = h(
    "datalist",
    { attrs: { id: freshId("models") } },
    ...MODELS.map((value) => h("option", { attrs: { value } })),
  );
  const name = h("input", {
    attrs: {
      type: "text",
      placeholder: trans.__("built-in (or a name, or a folder)"),
      spellcheck: "false",
      list: known.id,
    },
  });
  const open = button(trans.__("Open"));
  open.classList.add("gl-lab-first");
  const plan = button(trans.__("What it costs"), trans.__("Memory, disk and download, before anything is loaded"));
  const planned = h("dl", { class: "gl-lab-plan" });
  planned.hidden = true;
  const openRow = h("div", { class: "gl-lab-open" }, label(trans.__("Model to open"), name), known, row(open, plan));
  const progressText = h("span", { attrs: { role: "status" } });
  const bar = h("progress", { attrs: { max: 1, "aria-label": trans.__("Opening the model") } });
  const giveUp = button(trans.__("Cancel"));
  const progress = h("div", { class: "gl-lab-progress" }, progressText, bar, giveUp);
  const modelRow = h("div", {}, modelField, openRow, progress, planned);
  const prompt = h("textarea", { attrs: { rows: 3, placeholder: trans.__("A text to look into"), dir: "auto" } });
  const names = titles(trans);
  const make: Record<string, HTMLButtonElement> = {
    heatmap: button(names.heatmap, trans.__("Show the features of every token (Ctrl Enter)")),
    table: button(names.table, trans.__("List the features of the text")),
    steer: button(names.steer, trans.__("Continue the text with features turned up or down")),
    evolution: button(names.evolution, trans.__("Show how features change from layer to layer")),
    search: button(names.search, trans.__("Find features by these words")),
    card: button(names.card, trans.__("Show what a feature means: write its name as the text, like res.12/834")),
  };
  const stop = button(trans.__("Stop"), trans.__("Stop what runs"));
  const working = h("span", { class: "gl-lab-working", attrs: { role: "status" } });
  working.hidden = true;
  const reading = h("div", {}, label(trans.__("Text"), prompt), row(...Object.values(make), stop), working);
  const problem = h("p", { class: "gl-lab-problem", attrs: { role: "alert" } });
  problem.hidden = true;
  const feature = h("code", {});
  const card = button(trans.__("Open its card"));
  const toDesk = button(trans.__("Add to steering"));
  const chosen = h("div", { class: "gl-lab-row gl-lab-chosen" }, feature, card, toDesk);
  const views = h("select", { attrs: { "aria-label": trans.__("View") } });
  const tab = button(trans.__("Tab"), trans.__("Open this view in a tab of its own"));
  const cell = button(trans.__("Insert as cell"), trans.__("A cell that makes exactly this view"));
  const html = button(trans.__("HTML"), trans.__("Save as a page that needs no kernel and no network"));
  const png = button(trans.__("PNG"), trans.__("Save as a picture"));
  const close = button("×", trans.__("Close this view"));
  close.setAttribute("aria-label", trans.__("Close this view"));
  const viewBar = h(
    "div",
    { class: "gl-lab-view" },
    h("div", { class: "gl-lab-beside" }, views, close),
    row(cell, tab, html, png),
  );
  const head = h(
    "div",
    { class: "gl-lab-head" },
    label(trans.__("Kernel"), kernel),
    ...[standing, command, actions, modelRow, reading, problem, viewBar, chosen],
  );
  return {
    ...{ head, kernel, standing, command, actions, modelRow, model, modelField, closeModel, openRow, name, open },
    ...{ plan, planned, progress, progressText, bar, giveUp, reading, prompt, make, stop, working, problem },
    ...{ chosen, feature, card, toDesk, viewBar, views, tab, cell, html, png, close },
  };
}
