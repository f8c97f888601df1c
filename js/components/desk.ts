/** Steering: edits as rows, the default text beside the steered one, and what can be measured of the difference. */

import type { PaletteName } from "../core/colour";
import {
  ARM_NAMES,
  type Arm,
  type Colour,
  type Dose,
  type EditRow,
  isBusy,
  type NewToken,
  type Run,
  type Sampling,
  type Turn,
} from "../core/desk";
import type { About } from "../core/picture";
import type { Value } from "../core/synced";
import { textOf } from "../core/token";
import { mark, t, tn } from "../core/words";
import { aboutLine } from "./about";
import { type Banner, banner } from "./banner";
import { atEnd, freshId, h } from "./dom";
import { doseStrip } from "./dose-strip";
import { type GenerationView, generationView } from "./generation-view";
import { keys } from "./keys";
import { moversView } from "./movers";
import { download } from "./save-picture";
import { type SteeringRow, steeringRow } from "./steering-row";
import { steeringSettings } from "./steering-settings";
import { themed } from "./theme";
import { wordDiffView } from "./word-diff";
import "./root.css";
import "./desk.css";

export interface DeskOptions {
  values: {
    about: Value<About>;
    prompt: Value<string>;
    chat: Value<boolean>;
    turns: Value<Turn[]>;
    rows: Value<EditRow[]>;
    sampling: Value<Sampling>;
    follow: Value<string>;
    controls: Value<boolean>;
    current: Value<Run>;
    dose: Value<Dose | null>;
    colour: Value<Colour>;
    notes: Value<string[]>;
    palette: Value<PaletteName>;
  };
  /** Asks the kernel to do something; rejects with what is wrong. */
  call<T>(method: string, params?: Record<string, unknown>): Promise<T>;
  /** Something about a subject failed; `null` when it works again. */
  onError(subject: string, error: unknown): void;
  /** Whether there is a kernel at all. */
  live: boolean;
  signal: AbortSignal;
}

export interface Desk {
  el: HTMLElement;
  banner: Banner;
  /** Whether the kernel has stopped answering: what is shown then is the last that is known. */
  silent(now: boolean): void;
}

/** A run that shows nothing new for this long is asked after: a message may have been lost. */
const QUIET = 2000;
/** Milliseconds after which a Stop that has no answer is said to wait. */
const LATE = 700;
/** Milliseconds after a change when code that is shown is fetched again. */
const RENEW = 300;
const ENDS: Record<string, string> = {
  length: "",
  end: mark("the model ended here"),
  cancelled: mark("stopped here"),
  "not-finite": mark("broken off: no finite numbers"),
};

export function desk(options: DeskOptions): Desk {
  const { values, call, onError, live, signal } = options;
  let isSilent = false;
  let stopWaits = false;
  let lastNews = performance.now();
  const on = () => live && !isSilent;
  const tell = (subject: string, method: string, params: Record<string, unknown> = {}) =>
    call(method, params).then(
      () => onError(subject, null),
      (error) => onError(subject, error),
    );

  const messages = banner();
  const promptId = freshId("prompt");
  const prompt = h("textarea", {
    class: "gl-prompt",
    attrs: { id: promptId, rows: 2, spellcheck: "false", dir: "auto" },
  });
  const promptLabel = h("label", { class: "gl-list-title", attrs: { for: promptId } });
  const runButton = h("button", { class: "gl-run", text: t("Run"), attrs: { type: "button", title: t("Ctrl+Enter") } });
  const stopButton = h("button", { class: "gl-stop", text: t("Stop"), attrs: { type: "button", title: t("Escape") } });
  const status = h("span", { class: "gl-quiet gl-desk-status", attrs: { role: "status" } });
  const transcript = h("div", { class: "gl-turns" });
  const forget = h("button", { text: t("new chat"), attrs: { type: "button" } });

  const edits = h("div", { class: "gl-edits", attrs: { role: "list", "aria-label": t("Edits") } });
  const empty = h("div", { class: "gl-quiet gl-desk-empty", text: t("Add a feature to steer.") });
  const addField = h("input", {
    class: "gl-add-field",
    attrs: {
      type: "text",
      placeholder: t("site/index, for example res.12/834"),
      "aria-label": t("Feature to add"),
      size: 28,
    },
  });
  const addButton = h("button", { text: t("add feature"), attrs: { type: "button" } });
  const addProblem = h("span", { class: "gl-add-problem", attrs: { role: "alert" } });
  const add = h("div", { class: "gl-add" }, addField, addButton, addProblem);

  const listId = freshId("features");
  const offered = h("datalist", { attrs: { id: listId } });
  const colourField = h("input", {
    class: "gl-colour-field",
    attrs: { type: "text", list: listId, placeholder: t("no colour"), size: 16 },
  });
  colourField.id = freshId("colour");
  const controls = h("input", { attrs: { type: "checkbox" } });
  controls.id = freshId("controls");
  const code = h("button", { text: t("copy as code"), attrs: { type: "button" } });
  const save = h("button", {
    text: t("save preset"),
    attrs: { type: "button", title: t("Prompt, edits and sampling as a file, with what they were made with") },
  });
  const open = h("button", { text: t("open preset"), attrs: { type: "button" } });
  const file = h("input", {
    attrs: { type: "file", accept: ".json,application/json", "aria-label": t("Preset to open") },
  });
  file.hidden = true;
  const tools = h(
    "div",
    { class: "gl-desk-tools" },
    h("label", { text: t("colour by"), attrs: { for: colourField.id } }),
    colourField,
    offered,
    h(
      "label",
      {
        class: "gl-check",
        attrs: { title: t("Is it the feature? A random direction of the same norm, and the sign flipped") },
      },
      controls,
      ` ${t("control rows")}`,
    ),
    code,
    save,
    open,
    file,
  );
  const codeText = h("textarea", {
    class: "gl-code-text",
    attrs: { readonly: true, rows: 8, "aria-label": t("Code") },
  });
  codeText.hidden = true;

  const texts = h("div", { class: "gl-texts" });
  const diff = wordDiffView();
  const movers = moversView((feature) => tell("colour", "colour", { feature }), signal);
  const dose = doseStrip((strength) => {
    const key = values.dose.get()?.key;
    if (key !== undefined && on()) tell("dose", "edit", { key, strength });
  }, signal);
  const fold = (name: string, open: boolean, ...inside: Node[]) =>
    h("details", { class: "gl-fold", attrs: { open } }, h("summary", { text: name }), ...inside);
  const diffFold = fold(t("word by word"), true, diff.el);
  const doseFold = fold(t("dose strip"), true, dose.el);
  const moversFold = fold(
    t("largest movers: mean strength of the other features, default → steered, layer by layer"),
    false,
    movers.el,
  );
  const settings = steeringSettings({
    onSampling: (changes) => tell("sampling", "sampling", changes as Record<string, unknown>),
    onFollow: (value) => tell("sampling", "option", { name: "follow", value }),
    onChat: (value) => tell("sampling", "option", { name: "chat", value }),
    signal,
  });
  const about = aboutLine(t("Ctrl+Enter runs · Esc stops · slider: ← → 0.05, Shift 0.5, Home End 0"));
  const root = h(
    "div",
    { class: "gl-root gl-desk" },
    messages.el,
    transcript,
    promptLabel,
    h("div", { class: "gl-prompt-line" }, prompt, h("div", { class: "gl-buttons" }, runButton, stopButton)),
    h("div", { class: "gl-desk-line" }, settings.el, status, forget),
    edits,
    empty,
    add,
    tools,
    codeText,
    texts,
    diffFold,
    doseFold,
    moversFold,
    about.el,
  );
  const paint = themed(root, signal);

  // ---- edits

  const rows = new Map<number, { row: SteeringRow; life: AbortController }>();
  const drawRows = () => {
    const given = values.rows.get();
    const { effects } = values.current.get();
    const swept = values.dose.get();
    for (const [key, { row, life }] of rows)
      if (!given.some((edit) => edit.key === key)) {
        life.abort();
        row.el.remove();
        rows.delete(key);
      }
    given.forEach((edit, place) => {
      let known = rows.get(edit.key);
      if (!known) {
        const life = new AbortController();
        const row = steeringRow({
          onEdit: (changes) => call<void>("edit", { key: edit.key, ...changes }),
          onRemove: () => tell("row", "remove", { key: edit.key }),
          onSweep: () => tell("dose", "sweep", { key: edit.key }),
          signal: AbortSignal.any([life.signal, signal]),
        });
        row.el.setAttribute("role", "listitem");
        known = { row, life };
        rows.set(edit.key, known);
      }
      if (edits.children[place] !== known.row.el) edits.insertBefore(known.row.el, edits.children[place] ?? null);
      known.row.show(edit, effects[String(edit.key)] ?? null, on());
      known.row.bands(swept?.key === edit.key ? swept.rows : null);
    });
    empty.hidden = given.length > 0;
  };
  const addTyped = () => {
    const feature = addField.value.trim();
    if (!feature || !on()) return;
    call("add", { feature }).then(
      () => {
        addField.value = "";
        addProblem.textContent = "";
      },
      (error) => {
        addProblem.textContent = error instanceof Error ? error.message : String(error);
      },
    );
  };
  addButton.addEventListener("click", addTyped, { signal });
  addField.addEventListener("input", () => addProblem.replaceChildren(), { signal });
  addField.addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      event.stopPropagation();
      addTyped();
    },
    { signal },
  );

  // ---- texts

  const views = new Map<string, GenerationView>();
  const drawTexts = () => {
    const run = values.current.get();
    const colour = values.colour.get();
    const busy = isBusy(run.state) && on();
    const shown: Arm[] = run.arms.length ? [...run.arms] : [{ name: "default", tokens: [], stopped: null, notes: [] }];
    const standard = shown.find((arm) => arm.name === "default");
    for (const [name, view] of views)
      if (!shown.some((arm) => arm.name === name)) {
        view.el.remove();
        views.delete(name);
      }
    shown.forEach((arm, place) => {
      const view = views.get(arm.name) ?? generationView(arm.name);
      views.set(arm.name, view);
      if (texts.children[place] !== view.el) texts.insertBefore(view.el, texts.children[place] ?? null);
      view.show({
        title: t(ARM_NAMES[arm.name] ?? arm.name),
        tokens: arm.tokens,
        shades: isBusy(run.state) ? null : (colour.arms[arm.name] ?? null),
        busy: busy && arm.stopped === null,
        foot: [arm.stopped ? t(ENDS[arm.stopped] ?? arm.stopped) : "", ...arm.notes].filter(Boolean),
        diverges: standard && arm !== standard ? divergence(standard.tokens, arm.tokens) : null,
        nothing: run.state === "idle" ? t("Press Run.") : t("No text."),
      });
    });
    texts.classList.toggle("gl-texts-one", shown.length === 1);
    const steered = shown.find((arm) => arm.name === "steered");
    diffFold.hidden = !standard || !steered || isBusy(run.state) || !steered.tokens.length;
    if (!diffFold.hidden && standard && steered) diff.show(plain(standard.tokens), plain(steered.tokens));
    moversFold.hidden = run.movers.length === 0;
    movers.show(run.movers);
    drawStatus(run);
  };
  const drawStatus = (run: Run) => {
    const most = Math.max(0, ...run.arms.map((arm) => arm.tokens.length));
    const count = tn("{n} token", "{n} tokens", most);
    const words = {
      idle: "",
      waiting: t("waiting for the model"),
      running: t("running, {count}", { count }),
      finished: t("finished, {count}", { count }),
      stopped: t("stopped after {count}", { count }),
      failed: t("failed"),
    }[run.state];
    const sweeping = values.dose.get()?.state === "running" && !isBusy(run.state);
    const busy = isBusy(run.state) || sweeping;
    const last = sweeping ? t("sweeping") : (words ?? "");
    // One busy shell answers no call, but its worker thread still sends tokens.
    const heard = performance.now() - lastNews < QUIET;
    const lost = isSilent && busy && !heard;
    if (lost) status.textContent = t("no answer from the kernel; last known: {last}", { last });
    else
      status.textContent =
        (isSilent || stopWaits) && busy ? t("{last}; the kernel is busy, Stop must wait", { last }) : last;
    status.dataset.state = lost ? "unknown" : run.state;
    runButton.disabled = !on();
    stopButton.disabled = !on() || !busy;
    messages.say("run", run.error);
  };
  const drawColour = () => {
    const { feature, options: choices } = values.colour.get();
    if (!colourField.matches(":focus")) colourField.value = feature ?? "";
    offered.replaceChildren(
      ...choices.map((one) =>
        h("option", { text: [one.label, ...one.promotes].filter(Boolean).join(" "), attrs: { value: one.feature } }),
      ),
    );
    drawTexts();
  };
  const drawDose = () => {
    const swept = values.dose.get();
    const row = values.rows.get().find((edit) => edit.key === swept?.key);
    doseFold.hidden = swept === null;
    dose.show(swept, row?.feature ?? t("this edit"));
    drawRows();
    drawStatus(values.current.get());
  };

  // ---- what is said

  const drawPrompt = () => {
    const chats = values.chat.get();
    const given = values.prompt.get();
    if (!root.contains(focused(root)) || focused(root) !== prompt) {
      const answered = chats && values.current.get().state !== "idle";
      prompt.value = answered ? "" : given;
    }
    promptLabel.textContent = chats ? t("your message") : t("prompt");
    prompt.placeholder = chats ? t("Say something to both") : t("A text to continue");
    runButton.textContent = chats ? t("Send") : t("Run");
  };
  const drawTurns = () => {
    const chats = values.chat.get();
    const turns = values.turns.get();
    const run = values.current.get();
    forget.hidden = !chats || (turns.length === 0 && run.state === "idle");
    transcript.hidden = !chats;
    const said = run.state === "idle" ? [] : [values.prompt.get()];
    transcript.replaceChildren(
      ...turns.flatMap((turn) => [
        h("div", { class: "gl-user", text: turn.user, attrs: { dir: "auto" } }),
        h(
          "div",
          { class: "gl-answers" },
          h("div", { text: turn.default, attrs: { dir: "auto", "aria-label": t("default answer") } }),
          h("div", { text: turn.steered, attrs: { dir: "auto", "aria-label": t("steered answer") } }),
        ),
      ]),
      ...said.map((text) => h("div", { class: "gl-user", text, attrs: { dir: "auto" } })),
    );
  };
  const start = () => {
    if (!on()) return;
    const typed = prompt.value;
    if (values.chat.get()) {
      // An empty field answers the last message again.
      tell("run", "run", typed.trim() ? { prompt: typed } : {});
      prompt.value = "";
    } else tell("run", "run", { prompt: typed });
  };
  const stop = () => {
    if (!on() || stopButton.disabled) return;
    const late = setTimeout(() => waits(true), LATE);
    atEnd(signal, () => clearTimeout(late));
    tell("run", "stop").then(() => {
      clearTimeout(late);
      waits(false);
    });
  };
  const waits = (now: boolean) => {
    stopWaits = now;
    drawStatus(values.current.get());
  };
  runButton.addEventListener("click", start, { signal });
  stopButton.addEventListener("click", stop, { signal });
  prompt.addEventListener(
    "keydown",
    (event) => {
      if (event.key === "Escape") stop();
      else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start();
      else return;
      event.preventDefault();
      event.stopPropagation();
    },
    { signal },
  );
  // What is typed counts also for a slider that is moved next.
  prompt.addEventListener(
    "change",
    () => {
      if (!values.chat.get()) tell("run", "option", { name: "prompt", value: prompt.value });
    },
    { signal },
  );
  forget.addEventListener("click", () => tell("run", "forget"), { signal });
  controls.addEventListener("change", () => tell("row", "option", { name: "controls", value: controls.checked }), {
    signal,
  });
  colourField.addEventListener(
    "change",
    () => tell("colour", "colour", { feature: colourField.value.trim() || null }),
    { signal },
  );
  code.addEventListener(
    "click",
    async () => {
      if (!codeText.hidden) {
        codeText.hidden = true;
        return;
      }
      try {
        codeText.value = await call<string>("code");
        codeText.hidden = false;
        codeText.select();
        // Where the page may not write to the clipboard, the text stands there to be copied.
        await navigator.clipboard?.writeText(codeText.value);
        messages.say("code", t("The cell is on the clipboard."), "quiet");
        setTimeout(() => messages.say("code", null), 4000);
      } catch (error) {
        if (codeText.hidden) onError("code", error);
      }
    },
    { signal },
  );
  // Code that stands there is that of the desk as it is now, also after a slider has moved.
  let renewing: ReturnType<typeof setTimeout> | undefined;
  const renewCode = () => {
    clearTimeout(renewing);
    if (codeText.hidden) return;
    renewing = setTimeout(() => {
      call<string>("code").then(
        (text) => {
          codeText.value = text;
        },
        () => {
          codeText.hidden = true;
        },
      );
    }, RENEW);
  };
  for (const value of [values.rows, values.prompt, values.sampling])
    (value as Value<unknown>).subscribe(renewCode, signal);
  atEnd(signal, () => clearTimeout(renewing));
  save.addEventListener(
    "click",
    async () => {
      try {
        const text = await call<string>("preset");
        download("steering.json", `data:application/json;charset=utf-8,${encodeURIComponent(text)}`);
        onError("preset", null);
      } catch (error) {
        onError("preset", error);
      }
    },
    { signal },
  );
  open.addEventListener("click", () => file.click(), { signal });
  file.addEventListener(
    "change",
    async () => {
      const chosen = file.files?.[0];
      file.value = ""; // so that the same file can be chosen again
      if (chosen) tell("preset", "open", { text: await chosen.text(), name: chosen.name });
    },
    { signal },
  );
  keys(root, { Escape: stop }, signal);

  const drawFixed = () => {
    about.show(values.about.get());
    settings.show(values.sampling.get(), values.follow.get(), values.chat.get(), on());
    controls.checked = values.controls.get();
    for (const input of [prompt, addField, addButton, colourField, controls, code, save, open, forget])
      input.disabled = !on();
    add.hidden = tools.hidden = !live;
    const notes = values.notes.get();
    messages.say("notes", notes.length ? notes.join(" ") : null);
  };
  const drawAll = () => {
    drawFixed();
    drawPrompt();
    drawTurns();
    drawDose();
    drawColour();
  };
  values.current.subscribe(() => {
    lastNews = performance.now();
    drawTexts();
    drawRows();
    drawTurns();
  }, signal);
  values.rows.subscribe(drawRows, signal);
  values.dose.subscribe(() => {
    lastNews = performance.now();
    drawDose();
  }, signal);
  values.colour.subscribe(drawColour, signal);
  values.prompt.subscribe(() => {
    drawPrompt();
    drawTurns();
  }, signal);
  values.turns.subscribe(() => {
    drawPrompt();
    drawTurns();
  }, signal);
  values.chat.subscribe(drawAll, signal);
  for (const value of [values.sampling, values.follow, values.controls, values.notes, values.about])
    (value as Value<unknown>).subscribe(drawFixed, signal);
  values.palette.subscribe((name) => paint(name), signal);
  paint(values.palette.get());
  drawAll();

  if (live) {
    let asking = false;
    let lastAsked = 0;
    const timer = setInterval(() => {
      const busy = isBusy(values.current.get().state) || values.dose.get()?.state === "running";
      if (isSilent) drawStatus(values.current.get());
      if (!busy || asking || performance.now() - Math.max(lastNews, lastAsked) < QUIET) return;
      asking = true;
      call("fresh")
        .catch(() => undefined)
        .finally(() => {
          asking = false;
          lastAsked = performance.now();
        });
    }, QUIET / 4);
    signal.addEventListener("abort", () => clearInterval(timer), { once: true });
  }

  return {
    el: root,
    banner: messages,
    silent(now) {
      isSilent = now;
      drawAll();
    },
  };
}

function focused(el: HTMLElement): Element | null {
  return (el.getRootNode() as Document | ShadowRoot).activeElement ?? null;
}

function plain(tokens: NewToken[]): string {
  return textOf(tokens.map((token) => ({ ...token, special: false, start: 0, end: 0 })));
}

/** The first place where two texts differ; null where one is not yet longer than what they share. */
export function divergence(one: NewToken[], two: NewToken[]): number | null {
  const most = Math.min(one.length, two.length);
  for (let i = 0; i < most; i++) if (one[i].id !== two[i].id) return i;
  return null;
}
