import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { Arm, EditRow, NewToken } from "../../js/core/desk";
import widget, { mountStatic } from "../../js/widgets/steering-desk";
import { FakeModel, press, type Sent, settled } from "./fake";

let model: FakeModel;
let life: AbortController;
let el: HTMLElement;

const one = <T extends HTMLElement = HTMLElement>(selector: string) => el.querySelector<T>(selector) as T;
const all = (selector: string) => [...el.querySelectorAll<HTMLElement>(selector)];
const mount = () => widget.render({ model, el, signal: life.signal });
const banners = () => all(".gl-banner").map((line) => line.textContent);
const button = (text: string) => all("button").find((b) => b.textContent === text) as HTMLButtonElement;
const slider = () => one<HTMLInputElement>(".gl-dial-range");

const EDIT: EditRow = {
  key: 1,
  kind: "clamp",
  site: "res.12",
  feature: "res.12/834",
  strength: 1,
  maximum: 118,
  promotes: [" sea", "<b>"],
  where: null,
  when: null,
  formula: "h + (1·118 − f)·d",
  raw: 118,
  error: null,
};
const tokens = (...texts: string[]): NewToken[] =>
  texts.map((text, i) => ({ id: text.length * 10 + i, text, logprob: -0.7 }));
const arm = (name: string, given: NewToken[], more: Partial<Arm> = {}): Arm => ({
  name,
  tokens: given,
  stopped: null,
  notes: [],
  ...more,
});
const run = (id: number, state: string, arms: Arm[] = [], more = {}) => ({
  id,
  state,
  error: null,
  arms,
  effects: {},
  movers: [],
  ...more,
});
const effect = { silent: false, why: null, fired: 9, of: 12, share: 0.31, norm: 40, peak: 3, timeline: null };

function state(): Record<string, unknown> {
  return {
    protocol: 1,
    about: { model: "tiny", scope: null, device: "cpu", dtype: "float32", note: "" },
    prompt: "Once",
    chat: false,
    turns: [],
    rows: [EDIT],
    sampling: { max_new_tokens: 32, temperature: 0, top_k: null, top_p: null, seed: 0 },
    follow: "restart",
    controls: false,
    current: run(0, "idle"),
    dose: null,
    colour: { feature: null, arms: {}, options: [] },
    notes: [],
    palette: "blue",
    facts: null,
  };
}

beforeEach(() => {
  life = new AbortController();
  model = new FakeModel(state());
  model.answer = () => null;
  el = document.createElement("div");
  document.body.append(el);
});
afterEach(() => {
  life.abort();
  el.remove();
  vi.useRealTimers();
});

const refuse = (method: string, message: string) => {
  model.answer = undefined;
  const send = model.send.bind(model);
  model.send = (content: unknown) => {
    send(content);
    const { id, method: asked } = content as Sent;
    queueMicrotask(() =>
      model.reply(asked === method ? { kind: "error", id, code: "no", message } : { kind: "value", id, value: null }),
    );
  };
};

describe("rows", () => {
  test("show feature, hint, formula, units and what the last run did", () => {
    model.state.current = run(1, "finished", [], { effects: { "1": effect } });
    mount();
    const row = one(".gl-edit").textContent;
    for (const part of [
      "res.12/834",
      "␣sea",
      "<b>",
      "h + (1·118 − f)·d",
      "raw 118",
      "31 % of the tensor's norm",
      "9 of 12",
    ])
      expect(row).toContain(part);
    expect(el.querySelector("b")).toBeNull();
    expect(one('[role="radio"][aria-checked="true"]').textContent).toBe("clamp");
    expect(slider().getAttribute("aria-valuetext")).toContain("1.00 times");
  });
  test("an edit without effect says so, and why", () => {
    const silent = { ...effect, silent: true, why: "its feature is never active here" };
    model.state.current = run(1, "finished", [], { effects: { "1": silent } });
    mount();
    expect(one(".gl-edit-foot").textContent).toContain("No effect: its feature is never active here");
  });
  test("an error stands at its row, and goes with its cause", () => {
    model.state.rows = [
      { ...EDIT, error: "Site res.7 is not open." },
      { ...EDIT, key: 2 },
    ];
    mount();
    expect(all(".gl-edit-problem").map((line) => line.hidden)).toEqual([false, true]);
    expect(one(".gl-edit-problem").textContent).toBe("Site res.7 is not open.");
    model.update({ rows: [EDIT, { ...EDIT, key: 2 }] });
    expect(one(".gl-edit-problem").hidden).toBe(true);
  });
  test("what the kernel refuses of a row is said there, and the row goes back", async () => {
    refuse("edit", "The strength is enormous.");
    mount();
    const number = one<HTMLInputElement>(".gl-dial-number");
    number.value = "100000";
    number.dispatchEvent(new Event("change"));
    await settled();
    expect(one(".gl-edit-problem").textContent).toBe("The strength is enormous.");
    expect(number.value).toBe("1");
    expect(one(".gl-add-problem").textContent).toBe("");
  });
  test("a condition has a timeline", () => {
    model.state.rows = [{ ...EDIT, when: "while res.5/1 > 0.2" }];
    model.state.current = run(1, "finished", [], { effects: { "1": { ...effect, timeline: "0110" } } });
    mount();
    expect(all(".gl-timeline span").map((cell) => cell.className)).toEqual(["", "gl-fired", "gl-fired", ""]);
    expect(one(".gl-timeline").getAttribute("aria-label")).toContain("while res.5/1 > 0.2");
  });
  test("a vector has a slider but no choice of kind", () => {
    model.state.rows = [{ ...EDIT, kind: "add_vector", feature: null, maximum: null, raw: 12.5, formula: "h + 1·v" }];
    mount();
    expect(one(".gl-kinds").hidden).toBe(true);
    expect(one(".gl-edit").textContent).toContain("vector at res.12");
    expect(one(".gl-edit-foot").textContent).toContain("length 12.5");
  });
  test("an ablation has no strength to set", () => {
    model.state.rows = [{ ...EDIT, kind: "ablate", strength: 0 }];
    mount();
    expect(slider().disabled).toBe(true);
    expect(button("sweep").disabled).toBe(true);
  });
  test("the unit of the slider is said, and is another one for a factor", () => {
    model.state.rows = [{ ...EDIT, kind: "scale", strength: 3 }];
    mount();
    expect(slider().getAttribute("aria-valuetext")).toBe("3.00 times what it is");
    model.update({ rows: [{ ...EDIT, kind: "add", strength: 3 }] });
    expect(slider().getAttribute("aria-valuetext")).toBe("3.00 times the feature's own maximum");
    expect(button("sweep").disabled).toBe(false);
  });
  test("with no feature there is a hint", () => {
    model.state.rows = [];
    mount();
    expect(one(".gl-desk-empty").hidden).toBe(false);
    expect(one(".gl-desk-empty").textContent).toBe("Add a feature to steer.");
  });
  test("features are added and removed by calls", async () => {
    mount();
    one<HTMLInputElement>(".gl-add-field").value = " res.5/0 ";
    press(one(".gl-add-field"), "Enter");
    expect(model.calls("add")[0].params).toEqual({ feature: "res.5/0" });
    await settled();
    expect(one<HTMLInputElement>(".gl-add-field").value).toBe("");
    one(".gl-edit-remove").click();
    expect(model.calls("remove")[0].params).toEqual({ key: 1 });
    model.update({ rows: [] });
    expect(all(".gl-edit")).toEqual([]);
  });
  test("a feature that cannot be added is told where it was typed", async () => {
    refuse("add", "Feature 99 does not exist.");
    mount();
    one<HTMLInputElement>(".gl-add-field").value = "res.12/99";
    one(".gl-add button").click();
    await settled();
    expect(one(".gl-add-problem").textContent).toBe("Feature 99 does not exist.");
    expect(one<HTMLInputElement>(".gl-add-field").value).toBe("res.12/99");
  });
});

describe("the slider", () => {
  const sent = () => model.calls("edit").map((call) => call.params);

  test("goes by keys: fine, coarse, the ends and nothing", async () => {
    mount();
    const steps: [string, KeyboardEventInit, number][] = [
      ["ArrowRight", {}, 1.05],
      ["ArrowUp", { shiftKey: true }, 1.55],
      ["ArrowLeft", {}, 1.5],
      ["End", {}, 4],
      ["ArrowRight", {}, 4],
      ["Home", {}, -4],
      ["0", {}, 0],
    ];
    for (const [key, more, strength] of steps) {
      expect(press(slider(), key, more).defaultPrevented).toBe(true);
      await settled();
      expect(one<HTMLInputElement>(".gl-dial-number").value).toBe(String(strength));
    }
    expect(sent().map((params) => params.strength)).toEqual([1.05, 1.55, 1.5, 4, -4, 0]);
    expect(press(slider(), "a").defaultPrevented).toBe(false);
  });
  test("sends one call at a time, and of many places only the last", async () => {
    model.answer = undefined;
    mount();
    for (const place of [510, 520, 530, 540]) {
      slider().value = String(place);
      slider().dispatchEvent(new Event("input"));
    }
    expect(sent()).toEqual([{ key: 1, strength: 1.04 }]);
    model.reply({ kind: "value", id: model.calls("edit")[0].id, value: null });
    await settled();
    expect(sent()).toEqual([
      { key: 1, strength: 1.04 },
      { key: 1, strength: 1.17 },
    ]);
  });
  test("does not jump back to an older state of the kernel while it is moved", async () => {
    model.answer = undefined;
    mount();
    slider().value = "700";
    slider().dispatchEvent(new Event("input"));
    model.update({ current: run(2, "waiting") });
    expect(slider().value).toBe("700");
    model.reply({ kind: "value", id: model.calls("edit")[0].id, value: null });
    await settled();
    expect(slider().value).toBe("700");
    model.update({ rows: [{ ...EDIT, strength: 1.96, formula: "h + (1.96·118 − f)·d" }] });
    expect(one(".gl-formula").textContent).toContain("1.96");
    model.update({ rows: [{ ...EDIT, strength: -2 }] }); // set from Python
    expect(one<HTMLInputElement>(".gl-dial-number").value).toBe("-2");
  });
  test("an unreadable number changes nothing", () => {
    mount();
    const number = one<HTMLInputElement>(".gl-dial-number");
    number.value = "";
    number.dispatchEvent(new Event("change"));
    expect(sent()).toEqual([]);
    expect(number.value).toBe("1");
  });
  test("the four buttons go by click and by arrows", async () => {
    mount();
    button("scale").click();
    await settled();
    press(one('[data-kind="scale"]'), "ArrowRight");
    await settled();
    expect(sent()).toEqual([
      { key: 1, kind: "scale" },
      { key: 1, kind: "ablate" },
    ]);
    expect(one('[data-kind="scale"]').title).toBe("h + (k − 1)·f·d");
  });
  test("shows the bands that a sweep measured", () => {
    const rows = [-2, 0.5, 1, 4].map((strength, i) => ({
      strength,
      tokens: tokens(" a"),
      diverges: null,
      kl: 0.1,
      repetition: 0,
      band: ["breaks", "none", "works", "breaks"][i],
      safety: null,
    }));
    model.state.dose = { key: 1, state: "finished", error: null, rows };
    mount();
    const bands = all(".gl-band");
    expect(bands.map((band) => band.className.split("-").at(-1))).toEqual(["breaks", "none", "works", "breaks"]);
    const ends = bands.map((band) => [Number.parseFloat(band.style.left), Number.parseFloat(band.style.width)]);
    for (let i = 1; i < ends.length; i++) expect(ends[i - 1][0] + ends[i - 1][1]).toBeCloseTo(ends[i][0], 5);
  });
});

describe("texts", () => {
  const text = (name: string) => one(`.gl-gen-${name} .gl-gen-text`);

  test("grow token by token without being drawn anew", () => {
    mount();
    model.update({ current: run(1, "waiting", [arm("default", []), arm("steered", [])]) });
    expect(one(".gl-desk-status").textContent).toBe("waiting for the model");
    model.update({ current: run(1, "running", [arm("default", tokens(" a")), arm("steered", tokens(" b"))]) });
    const first = text("steered").querySelector(".gl-token");
    model.update({
      current: run(1, "running", [arm("default", tokens(" a", " c")), arm("steered", tokens(" b", " dd"))]),
    });
    expect(text("steered").querySelector(".gl-token")).toBe(first);
    expect(text("steered").textContent).toBe("␣b dd");
    expect(text("steered").getAttribute("aria-busy")).toBe("true");
    expect(one(".gl-desk-status").textContent).toBe("running, 2 tokens");
  });
  test("a new run keeps the last text, pale, until its first token; then nothing of the old one is left", () => {
    model.state.current = run(1, "finished", [arm("default", tokens(" a", " b")), arm("steered", tokens(" a", " x"))]);
    mount();
    model.update({ current: run(2, "waiting", [arm("default", []), arm("steered", [])]) });
    expect(text("steered").textContent).toContain("x");
    expect(one(".gl-gen-steered").classList.contains("gl-gen-stale")).toBe(true);
    model.update({ current: run(2, "running", [arm("default", tokens(" a")), arm("steered", tokens(" yy"))]) });
    expect(text("steered").textContent).toBe("␣yy");
    expect(one(".gl-gen-steered").classList.contains("gl-gen-stale")).toBe(false);
  });
  test("the first token that differs is marked, and the words that do", () => {
    model.state.current = run(1, "finished", [
      arm("default", tokens(" a", " bb", " c"), { stopped: "length" }),
      arm("steered", tokens(" a", " bbb", " c"), { stopped: "end" }),
    ]);
    mount();
    const spans = [...text("steered").querySelectorAll(".gl-token")];
    expect(spans.map((span) => span.classList.contains("gl-diverges"))).toEqual([false, true, false]);
    expect(one(".gl-diff del").textContent).toBe(" bb");
    expect(one(".gl-diff ins").textContent).toBe(" bbb");
    expect(one(".gl-gen-steered .gl-gen-foot").textContent).toBe("the model ended here");
  });
  test("are coloured by the chosen feature once they are finished", () => {
    const arms = [arm("default", tokens(" a", " b")), arm("steered", tokens(" a", " b"))];
    model.state.current = run(1, "running", arms);
    model.state.colour = { feature: "res.12/834", arms: { default: [0, 0.2], steered: [1, 0] }, options: [] };
    mount();
    const shades = () =>
      [...text("steered").querySelectorAll<HTMLElement>(".gl-token")].map((s) =>
        s.style.getPropertyValue("--gl-shade"),
      );
    expect(shades()).toEqual(["0.000", "0.000"]);
    model.update({ current: run(1, "finished", arms) });
    expect(shades()).toEqual(["1.000", "0.000"]);
    const field = one<HTMLInputElement>(".gl-colour-field");
    expect(field.value).toBe("res.12/834");
    field.value = "res.5/7";
    field.dispatchEvent(new Event("change"));
    field.value = "";
    field.dispatchEvent(new Event("change"));
    expect(model.calls("colour").map((call) => call.params.feature)).toEqual(["res.5/7", null]);
  });
  test("hostile text stays text", () => {
    const hostile = "<img src=x onerror=alert(1)>\u202e";
    model.state.current = run(1, "finished", [arm("default", tokens(" a")), arm("steered", tokens(hostile))]);
    model.state.prompt = hostile;
    mount();
    expect(el.querySelector("img")).toBeNull();
    expect(text("steered").textContent).toContain("⟨U+202E⟩");
    expect(one(".gl-diff").textContent).toContain("⟨U+202E⟩");
  });
  test("control rows are further texts", () => {
    model.state.current = run(
      1,
      "finished",
      ["default", "steered", "random", "flipped"].map((name) => arm(name, tokens(" a"))),
    );
    mount();
    expect(all(".gl-gen-title").map((title) => title.textContent)).toEqual([
      "default",
      "steered",
      "control: random direction",
      "control: sign flipped",
    ]);
    one<HTMLInputElement>(".gl-check input").click();
    expect(model.calls("option")[0].params).toEqual({ name: "controls", value: true });
  });
  test("movers are listed by layer and colour the texts when clicked", () => {
    const movers = [
      { layer: 5, features: [{ feature: "res.5/9", promotes: [" x"], from: 0.1, to: 0.4, raw: [1, 4] }] },
      { layer: 12, features: [{ feature: "res.12/0", promotes: [], from: null, to: null, raw: [3, 0] }] },
    ];
    model.state.current = run(1, "finished", [arm("default", tokens(" a"))], { movers });
    mount();
    expect(all(".gl-mover").map((row) => row.textContent)).toEqual(["res.5/90.10 → 0.40␣x", "res.12/03.00 → 0.00"]);
    all(".gl-mover")[1].click();
    expect(model.calls("colour")[0].params).toEqual({ feature: "res.12/0" });
  });
});

describe("running", () => {
  test("Run sends what is typed; Stop is there while something runs", async () => {
    mount();
    expect(button("Stop").disabled).toBe(true);
    one<HTMLTextAreaElement>(".gl-prompt").value = "Twice";
    button("Run").click();
    expect(model.calls("run")[0].params).toEqual({ prompt: "Twice" });
    model.update({ current: run(1, "running", [arm("default", tokens(" a"))]) });
    button("Stop").click();
    expect(model.calls("stop").length).toBe(1);
    press(one(".gl-prompt"), "Escape");
    press(one(".gl-edit-remove"), "Escape");
    expect(model.calls("stop").length).toBe(3);
    press(one(".gl-prompt"), "Enter", { ctrlKey: true });
    expect(model.calls("run").length).toBe(2);
    model.update({ current: run(1, "stopped", [arm("default", tokens(" a"), { stopped: "cancelled" })]) });
    expect(one(".gl-desk-status").textContent).toBe("stopped after 1 token");
  });
  test("a run that failed says why", () => {
    model.state.current = run(1, "failed", [], { error: "The text is empty." });
    mount();
    expect(banners()).toEqual(["The text is empty."]);
    model.update({ current: run(2, "running") });
    expect(banners()).toEqual([]);
  });
  test("silence in mid-run is asked after; a kernel that does not answer leaves no claim that it runs", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "setInterval", "clearInterval", "clearTimeout", "performance"] });
    model.answer = undefined;
    model.state.current = run(1, "running", [arm("default", tokens(" a")), arm("steered", tokens(" b"))]);
    mount();
    one(".gl-root").getClientRects = () => [{}] as unknown as DOMRectList;
    await vi.advanceTimersByTimeAsync(3000);
    expect(model.calls("fresh").length).toBe(1);
    await vi.advanceTimersByTimeAsync(7000);
    expect(one(".gl-desk-status").textContent).toBe("no answer from the kernel; last known: running, 1 token");
    expect(button("Run").disabled && button("Stop").disabled && slider().disabled).toBe(true);
    expect(one(".gl-gen-steered .gl-gen-text").textContent).toBe("␣b");
    expect(banners()[0]).toContain("does not answer");
    // tokens still come: a cell keeps the kernel from answering, but the run is alive
    model.update({ current: run(1, "running", [arm("default", tokens(" a")), arm("steered", tokens(" b", " c"))]) });
    expect(one(".gl-desk-status").textContent).toBe("running, 2 tokens; the kernel is busy, Stop must wait");
    expect(one(".gl-desk-status").dataset.state).toBe("running");
    await vi.advanceTimersByTimeAsync(2600);
    expect(one(".gl-desk-status").textContent).toBe("no answer from the kernel; last known: running, 2 tokens");
    model.update({ current: run(1, "running", [arm("default", tokens(" a")), arm("steered", tokens(" b"))]) });
    for (const call of model.calls("fresh")) model.reply({ kind: "value", id: call.id, value: null });
    await vi.advanceTimersByTimeAsync(600);
    expect(button("Run").disabled).toBe(false);
    expect(banners()).toEqual([]);
  });
  test("sampling and what a moved slider does are set by calls", () => {
    mount();
    const inputs = all(".gl-setting input") as HTMLInputElement[];
    inputs[1].value = "0.8";
    inputs[1].dispatchEvent(new Event("change"));
    inputs[2].value = "";
    inputs[2].dispatchEvent(new Event("change"));
    inputs[4].value = "";
    inputs[4].dispatchEvent(new Event("change"));
    expect(model.calls("sampling").map((call) => call.params)).toEqual([{ temperature: 0.8 }, { top_k: null }]);
    const follow = one<HTMLSelectElement>(".gl-setting select");
    follow.value = "next";
    follow.dispatchEvent(new Event("change"));
    expect(model.calls("option")[0].params).toEqual({ name: "follow", value: "next" });
  });
  test("a Stop that must wait for a cell says so", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "setInterval", "clearInterval", "clearTimeout", "performance"] });
    model.answer = undefined;
    model.state.current = run(1, "running", [arm("default", tokens(" a")), arm("steered", tokens(" b"))]);
    mount();
    button("Stop").click();
    await vi.advanceTimersByTimeAsync(800);
    expect(one(".gl-desk-status").textContent).toBe("running, 1 token; the kernel is busy, Stop must wait");
    model.reply({ kind: "value", id: model.calls("stop")[0].id, value: null });
    await vi.advanceTimersByTimeAsync(10);
    expect(one(".gl-desk-status").textContent).toBe("running, 1 token");
  });
  test("the cell that makes the run can be copied", async () => {
    model.answer = () => "import gemloupe as gl";
    mount();
    button("copy as code").click();
    await settled();
    expect(one<HTMLTextAreaElement>(".gl-code-text").value).toBe("import gemloupe as gl");
    expect(one(".gl-code-text").hidden).toBe(false);
    model.answer = () => "import gemloupe";
    model.update({ prompt: "Another" });
    await vi.waitFor(() => expect(one<HTMLTextAreaElement>(".gl-code-text").value).toBe("import gemloupe"));
  });
  test("a preset is saved as a file, and opened from one", async () => {
    const saved: string[] = [];
    const click = vi.spyOn(HTMLAnchorElement.prototype, "click").mockImplementation(function (this: HTMLAnchorElement) {
      saved.push(this.download, decodeURIComponent(this.href));
    });
    model.answer = () => '{"prompt": "Ö"}';
    mount();
    button("save preset").click();
    await settled();
    expect(saved).toEqual(["steering.json", 'data:application/json;charset=utf-8,{"prompt": "Ö"}']);
    click.mockRestore();
    const file = one<HTMLInputElement>("input[type=file]");
    Object.defineProperty(file, "files", { value: [{ name: "mine.json", text: async () => "{}" }] });
    file.dispatchEvent(new Event("change"));
    await vi.waitFor(() =>
      expect(model.calls("open").map((sent) => sent.params)).toEqual([{ text: "{}", name: "mine.json" }]),
    );
  });
  test("what is different from a preset is said", () => {
    model.state.notes = ["The SAE at res.12 is a here, and was b."];
    mount();
    expect(banners()).toEqual(["The SAE at res.12 is a here, and was b."]);
  });
});

describe("names", () => {
  test("what a feature is about stands at its row, its movers and where colours are chosen", () => {
    const label = "<i>cities";
    model.state.rows = [
      { ...EDIT, label },
      { ...EDIT, key: 2, label: "" },
    ];
    const moved = { feature: "res.9/3", label, promotes: [" Paris"], from: 0, to: 0.5, raw: [0, 2] };
    model.state.current = run(1, "finished", [], { movers: [{ layer: 9, features: [moved] }] });
    model.state.colour = { feature: null, arms: {}, options: [{ feature: "res.9/3", label, promotes: [" Paris"] }] };
    mount();
    expect(all(".gl-edit-label").map((one) => one.textContent)).toEqual([label, ""]);
    expect(one(".gl-mover-words b").textContent).toBe(label);
    expect(one("datalist option").textContent).toBe(`${label}  Paris`);
  });
});

describe("the dose strip", () => {
  const row = (strength: number, band: string, more = {}) => ({
    strength,
    tokens: tokens(" a", " b"),
    diverges: 1,
    kl: 0.25,
    surprise: 3.5,
    repetition: 0.5,
    band,
    safety: null,
    ...more,
  });
  test("has a row per strength, the first other token marked, and sets the slider", () => {
    mount();
    button("sweep").click();
    expect(model.calls("sweep")[0].params).toEqual({ key: 1 });
    model.update({ dose: { key: 1, state: "running", error: null, rows: [] } });
    expect(one(".gl-dose-head").textContent).toBe("res.12/834: running");
    expect(one(".gl-desk-status").textContent).toBe("sweeping");
    expect(button("Stop").disabled).toBe(false);
    const rows = [row(-1, "none", { diverges: null }), row(0.5, "none"), row(2, "works", { surprise: null })];
    model.update({
      dose: { key: 1, state: "finished", error: null, rows, default: tokens(" a", " c"), surprise: 2, repetition: 0 },
    });
    expect(all(".gl-dose tbody tr").map((tr) => tr.textContent)).toEqual([
      "without this edit0.002.000 % a c",
      "−1.00no effect0.253.5050 % a b",
      "0.50hardly any0.253.5050 % a b",
      "2.00works0.25?50 % a b",
    ]);
    expect(one(".gl-desk-status").textContent).toBe("");
    expect(one(".gl-dose .gl-diverges").textContent).toBe(" b");
    expect(one(".gl-dose thead").textContent).not.toContain("safety ");
    button("2.00").click();
    expect(model.calls("edit")[0].params).toEqual({ key: 1, strength: 2 });
  });
  test("has room for a safety score", () => {
    model.state.dose = { key: 1, state: "finished", error: null, rows: [row(1, "works", { safety: 0.125 })] };
    mount();
    expect(one(".gl-dose tbody").textContent).toContain("0.13");
  });
  test("says what went wrong", () => {
    model.state.dose = { key: 1, state: "failed", error: "ablate has no strength to sweep.", rows: [] };
    mount();
    expect(one(".gl-dose-head").textContent).toBe("ablate has no strength to sweep.");
  });
});

describe("chat", () => {
  test("shows both histories, sends the next message, and answers the last one again when nothing is typed", () => {
    Object.assign(model.state, {
      chat: true,
      prompt: "And then?",
      turns: [{ user: "Hi", default: "Hello.", steered: "Ahoy." }],
      current: run(2, "finished", [arm("default", tokens(" a")), arm("steered", tokens(" b"))]),
    });
    mount();
    expect(all(".gl-user").map((said) => said.textContent)).toEqual(["Hi", "And then?"]);
    expect(one(".gl-answers").textContent).toBe("Hello.Ahoy.");
    const field = one<HTMLTextAreaElement>(".gl-prompt");
    expect(field.value).toBe("");
    button("Send").click();
    field.value = "Really?";
    button("Send").click();
    expect(model.calls("run").map((call) => call.params)).toEqual([{}, { prompt: "Really?" }]);
    button("new chat").click();
    expect(model.calls("forget").length).toBe(1);
  });
});

describe("life", () => {
  test("the last view that goes says so, after a while; a view that comes back in time keeps the run", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const second = new AbortController();
    mount();
    widget.render({ model, el, signal: second.signal });
    life.abort();
    await vi.advanceTimersByTimeAsync(3000);
    expect(model.calls("left").length).toBe(0);
    second.abort();
    await vi.advanceTimersByTimeAsync(1000);
    const third = new AbortController();
    widget.render({ model, el, signal: third.signal });
    await vi.advanceTimersByTimeAsync(3000);
    expect(model.calls("left").length).toBe(0);
    third.abort();
    await vi.advanceTimersByTimeAsync(3000);
    expect(model.calls("left").length).toBe(1);
  });
  test("a view that is gone leaves no listener and no call open", async () => {
    const before = model.listenerCount();
    mount();
    press(slider(), "End");
    life.abort();
    await settled();
    expect(model.listenerCount()).toBe(before);
    expect(el.children.length).toBe(0);
  });
  test("another version of the kernel is not misread", () => {
    model.state.protocol = 2;
    mount();
    expect(banners()[0]).toContain("different versions");
    expect(button("Run").disabled).toBe(true);
  });
  test("nonsense in the traits does not break the view", () => {
    Object.assign(model.state, { rows: null, current: 3, dose: undefined, colour: "x", sampling: [], turns: null });
    expect(mount).not.toThrow();
    expect(one(".gl-desk-empty").hidden).toBe(false);
  });
  test("the static twin shows rows and texts, and nothing to press", () => {
    const saved = {
      ...state(),
      facts: {},
      current: run(1, "finished", [arm("default", tokens(" a")), arm("steered", tokens(" b"))]),
    };
    mountStatic(el, JSON.parse(JSON.stringify(saved)));
    expect(one(".gl-gen-steered .gl-gen-text").textContent).toBe("␣b");
    expect(one(".gl-edit").textContent).toContain("res.12/834");
    expect(all("button").filter((b) => !(b as HTMLButtonElement).disabled && !b.closest("[hidden]"))).toEqual([]);
    expect(slider().disabled).toBe(true);
    expect(banners()).toEqual([]);
  });
});
