/** One edit: which feature, what is done to it, how strongly, and what that did. */

import { type DoseRow, type EditRow, type Effect, FORMULAS, KINDS } from "../core/desk";
import { percentText, rawText } from "../core/numbers";
import { mark, t } from "../core/words";
import { h } from "./dom";
import { steeringSlider } from "./steering-slider";
import { chip } from "./text";
import "./steering-row.css";

export interface SteeringRowCallbacks {
  /** Resolves when the kernel has it; rejects with what is wrong with it. */
  onEdit(changes: { kind?: string; strength?: number }): Promise<void>;
  onRemove(): void;
  onSweep(): void;
  signal: AbortSignal;
}

export interface SteeringRow {
  el: HTMLElement;
  show(row: EditRow, effect: Effect | null, enabled: boolean): void;
  bands(rows: Pick<DoseRow, "strength" | "band">[] | null): void;
}

const SWEEP = mark("Run nine strengths with one seed: the dose strip");
const VERBS: Record<(typeof KINDS)[number], string> = {
  add: mark("add"),
  clamp: mark("clamp"),
  scale: mark("scale"),
  ablate: mark("ablate"),
};
/** What 1 on the slider is. */
const UNITS: Record<string, string> = {
  add: mark("times the feature's own maximum"),
  clamp: mark("times the feature's own maximum"),
  scale: mark("times what it is"),
  ablate: mark("times what it is"),
  add_vector: mark("times the vector"),
};

/** How long what was set here is shown although the kernel's row still says something else. */
const PATIENCE = 500;

export function steeringRow({ onEdit, onRemove, onSweep, signal }: SteeringRowCallbacks): SteeringRow {
  let row: EditRow | null = null;
  let effect: Effect | null = null;
  let wanted: { kind?: string; strength?: number } | null = null;
  let sending = false;
  let mine = false;
  let release: ReturnType<typeof setTimeout> | undefined;
  let fault: string | null = null;

  const name = h("span", { class: "gl-edit-name" });
  const said = h("span", { class: "gl-edit-label", attrs: { dir: "auto" } });
  const promotes = h("span", { class: "gl-edit-promotes", attrs: { title: t("tokens its direction makes likelier") } });
  const kinds = h("span", { class: "gl-kinds", attrs: { role: "radiogroup", "aria-label": t("What is done") } });
  const buttons = KINDS.map((kind) => {
    const button = h("button", {
      class: "gl-kind",
      text: t(VERBS[kind]),
      attrs: { type: "button", role: "radio", title: FORMULAS[kind], "data-kind": kind },
    });
    kinds.append(button);
    return button;
  });
  const formula = h("code", { class: "gl-formula" });
  const sweep = h("button", {
    class: "gl-edit-sweep",
    text: t("sweep"),
    attrs: { type: "button" },
  });
  const remove = h("button", { class: "gl-edit-remove", text: "×", attrs: { type: "button" } });
  const foot = h("div", { class: "gl-edit-foot gl-quiet" });
  const timeline = h("div", { class: "gl-timeline", attrs: { role: "img" } });
  const problem = h("div", { class: "gl-edit-problem", attrs: { role: "alert" } });
  const slider = steeringSlider((strength) => want({ strength }), signal);
  const el = h(
    "div",
    { class: "gl-edit", attrs: { role: "group" } },
    h("div", { class: "gl-edit-head" }, name, said, promotes, kinds, formula, sweep, remove),
    slider.el,
    foot,
    timeline,
    problem,
  );

  const keep = () => {
    mine = true;
    clearTimeout(release);
    release = setTimeout(() => {
      mine = sending;
      draw();
    }, PATIENCE);
  };
  const want = (changes: { kind?: string; strength?: number }) => {
    wanted = { ...wanted, ...changes };
    keep();
    send();
  };
  /** One call at a time: what is set meanwhile goes with the next, and only the last of it. */
  const send = () => {
    if (sending || wanted === null) return;
    const changes = wanted;
    wanted = null;
    sending = true;
    onEdit(changes)
      .then(
        () => {
          fault = null;
        },
        (error) => {
          fault = error instanceof Error ? error.message : String(error);
          // What was refused does not hold: show again what does.
          mine = wanted !== null;
        },
      )
      .finally(() => {
        sending = false;
        if (mine) keep();
        send();
        draw();
      });
  };
  const pick = (kind: string) => {
    if (kind === row?.kind) return;
    check(kind);
    want({ kind });
  };
  const check = (kind: string) => {
    for (const button of buttons) {
      const chosen = button.dataset.kind === kind;
      button.setAttribute("aria-checked", String(chosen));
      button.tabIndex = chosen || (kind === "add_vector" && button === buttons[0]) ? 0 : -1;
    }
  };
  kinds.addEventListener(
    "click",
    (event) => {
      const kind = event.target instanceof HTMLElement ? event.target.dataset.kind : undefined;
      if (kind) pick(kind);
    },
    { signal },
  );
  kinds.addEventListener(
    "keydown",
    (event) => {
      const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      const here = buttons.findIndex((button) => button.getAttribute("aria-checked") === "true");
      const next = buttons[(here + by + buttons.length) % buttons.length];
      next.focus();
      pick(next.dataset.kind as string);
    },
    { signal },
  );
  remove.addEventListener("click", onRemove, { signal });
  sweep.addEventListener("click", onSweep, { signal });
  signal.addEventListener("abort", () => clearTimeout(release), { once: true });

  let enabled = true;
  const draw = () => {
    if (!row) return;
    const label = row.feature ?? t("vector at {site}", { site: row.site });
    el.setAttribute("aria-label", label);
    name.textContent = label;
    said.textContent = said.title = row.label ?? "";
    remove.setAttribute("aria-label", t("Remove {feature}", { feature: label }));
    remove.title = t("Remove");
    const vector = row.feature === null;
    promotes.hidden = row.promotes.length === 0;
    promotes.replaceChildren(...row.promotes.slice(0, 5).map((text) => chip(text)));
    for (const button of [...buttons, remove]) button.disabled = !enabled;
    sweep.disabled = !enabled || row.kind === "ablate";
    sweep.title = row.kind === "ablate" ? t("An ablation has no strength to sweep: sweep a scale") : t(SWEEP);
    kinds.hidden = vector;
    sweep.hidden = vector;
    if (!mine) {
      check(row.kind);
      slider.show(row.strength, enabled && row.kind !== "ablate", label, t(UNITS[row.kind] ?? UNITS.add));
      formula.textContent = row.formula;
    }
    foot.replaceChildren(...smallPrint(row, effect).map((words) => h("span", { text: words })));
    foot.classList.toggle("gl-silent", effect?.silent === true);
    drawTimeline(timeline, row, effect);
    const wrong = fault ?? row.error;
    problem.hidden = wrong === null;
    if (problem.textContent !== (wrong ?? "")) problem.textContent = wrong ?? "";
  };

  return {
    el,
    bands: slider.bands,
    show(given, did, on) {
      if (row && given !== row) {
        // The kernel's row has what was set here, so it may lead again.
        if (!sending && wanted === null) mine = false;
        if (given.kind !== row.kind || given.strength !== row.strength) fault = null;
      }
      [row, effect, enabled] = [given, did, on];
      draw();
    },
  };
}

/** The small print: raw numbers, and what the last run did. */
function smallPrint(row: EditRow, effect: Effect | null): string[] {
  const words: string[] = [];
  if (row.where) words.push(row.where);
  if (row.when) words.push(row.when);
  if (row.raw !== null)
    words.push(
      row.feature === null ? t("length {raw}", { raw: rawText(row.raw) }) : t("raw {raw}", { raw: rawText(row.raw) }),
    );
  if (row.maximum !== null) words.push(t("1.0 = raw {raw}", { raw: rawText(row.maximum) }));
  else if (row.feature !== null) words.push(t("its maximum is not known"));
  if (!effect) return words;
  if (effect.silent) words.push(t("No effect: {why}", { why: effect.why || t("it changed nothing in this text") }));
  else {
    if (effect.share !== null) words.push(t("{share} of the tensor's norm", { share: percentText(effect.share) }));
    words.push(t("acted at {n} of {all} tokens", { n: effect.fired, all: effect.of }));
  }
  return words;
}

/** A cell per token, full where the edit acted. */
function drawTimeline(el: HTMLElement, row: EditRow, effect: Effect | null): void {
  const line = effect?.timeline ?? null;
  el.hidden = line === null;
  if (line === null) return;
  el.setAttribute(
    "aria-label",
    t("{when}: at {n} of {all} tokens", { when: row.when ?? t("acted"), n: effect?.fired ?? 0, all: line.length }),
  );
  el.replaceChildren(
    ...[...line].map((one, i) =>
      h("span", {
        class: one === "1" ? "gl-fired" : "",
        attrs: { title: one === "1" ? t("token {n}: acted", { n: i }) : t("token {n}", { n: i }) },
      }),
    ),
  );
}
