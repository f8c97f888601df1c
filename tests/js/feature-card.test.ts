import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { mountHere } from "../../js/widgets/_static";
import widget, { mountStatic } from "../../js/widgets/feature-card";
import pair from "../../js/widgets/feature-cards";
import { mountBoth } from "../../js/widgets/feature-cards.static";
import { FakeModel, press, settled, token } from "./fake";

let model: FakeModel;
let life: AbortController;
let el: HTMLElement;
const one = (selector: string) => el.querySelector<HTMLElement>(selector) as HTMLElement;
const all = (selector: string) => [...el.querySelectorAll<HTMLElement>(selector)];
const named = (name: string) =>
  all("button, input, textarea, select, [role]").find(
    (node) => node.getAttribute("aria-label") === name,
  ) as HTMLElement;
const calls = (method: string) => model.calls(method).map((call) => call.params);

const example = (document: number, more: Record<string, unknown> = {}) => ({
  tokens: ["I", " like", " <b>tea</b>", "."],
  acts: [0, 2, 8, 0],
  peak: 2,
  value: 8,
  document,
  position: 12,
  known: null,
  ...more,
});
const EVIDENCE = {
  index: "mine",
  tokens: 2000,
  fired: 30,
  maximum: 8,
  mean: 3,
  counts: [20, 8, 2],
  edges: [1, 2, 4, 8],
  on: [[" tea", 20]],
  looked_at: 30,
  together: [["res.5/9", 0.25, 7]],
};
const SHOWN = {
  feature: "res.5/0",
  width: 96,
  maximum: 10,
  density: 0.015,
  promotes: [
    [" milk", 3],
    [" cup", 1.5],
  ],
  suppresses: [["\n", -2]],
  neuronpedia: null,
  evidence: EVIDENCE,
  why: "",
};
const READING = {
  text: "tea!",
  feature: "res.5/0",
  tokens: [token("<bos>", { special: true }), token("tea"), token("!")],
  acts: [0, 5, 0],
  error: null,
};
const state = (more: Record<string, unknown> = {}) => ({
  protocol: 1,
  about: { model: "tiny", scope: null, device: "cpu", dtype: "float32", note: "" },
  shown: SHOWN,
  said: { labels: [{ text: "on “tea”", source: "automatic", by: "counts", score: null }], note: "", starred: false },
  examples: {
    context: 10,
    top: [example(0), example(1)],
    intervals: [
      { low: 0, high: 4, examples: [] },
      { low: 4, high: 8, examples: [example(2)] },
    ],
  },
  near: { state: "known", error: null, own: [["res.5/3", 0.5]], others: [["mlp.2/0", 0.4]] },
  more: {
    feature: "res.5/0",
    threshold: 1.5,
    names: {
      "res.5/3": { label: "drinks", source: "user", promotes: [] },
      "mlp.2/0": { label: "", source: "", promotes: [" hot"] },
    },
  },
  text: "",
  reading: null,
  ablated: null,
  trail: [],
  context: 10,
  desk: null,
  palette: "blue",
  facts: null,
  ...more,
});

beforeEach(() => {
  life = new AbortController();
  el = document.createElement("div");
  document.body.append(el);
});
afterEach(() => {
  life.abort();
  el.remove();
  vi.useRealTimers();
});
function mount(more: Record<string, unknown> = {}, host?: unknown) {
  model = new FakeModel(state(more));
  widget.render({ model, el, signal: life.signal, host } as never);
}

describe("what is known", () => {
  test("feature 0 is shown as any other", () => {
    mount();
    expect(one(".gl-card-name").textContent).toBe("res.5/0");
    expect(el.textContent).toContain("feature 0 of 96 at res.5");
    expect(el.textContent).toContain("30 of 2,000 tokens");
    expect(el.querySelector("b")).toBeNull();
  });
  test("the label says who gave it, and an automatic one stands back", () => {
    mount();
    expect(one(".gl-label-text").textContent).toBe("on “tea”");
    expect(one(".gl-label-text").classList).toContain("gl-quiet");
    expect(one(".gl-label-source").textContent).toBe("automatic, from counts");
    const labels = [
      { text: "tea", source: "user", by: "you", score: null },
      { text: "hot drinks", source: "explained", by: "gpt", score: 0.83 },
    ];
    model.update({ said: { labels, note: "see", starred: true } });
    expect(one(".gl-label-text").textContent).toBe("tea");
    expect(one(".gl-label-others").textContent).toContain("score 0.83");
    expect(named("Starred: take the star away").getAttribute("aria-pressed")).toBe("true");
    expect((named("Your note") as HTMLTextAreaElement).value).toBe("see");
  });
  test("the histogram has a bar for each count, log-spaced, with the threshold marked", () => {
    mount();
    const bars = all(".gl-histogram-bar");
    expect(bars.map((bar) => bar.textContent)).toEqual([
      "1.00 to 2.00: 20 tokens",
      "2.00 to 4.00: 8 tokens",
      "4.00 to 8.00: 2 tokens",
    ]);
    const widths = bars.map((bar) => Number(bar.getAttribute("width")));
    expect(Math.max(...widths) - Math.min(...widths)).toBeLessThan(1e-6); // octaves are equally wide
    const line = one("line.gl-mark-threshold");
    const places = bars.map((bar) => Number(bar.getAttribute("x")));
    expect(Number(line.getAttribute("x1"))).toBeGreaterThan(places[0]);
    expect(Number(line.getAttribute("x1"))).toBeLessThan(places[1]);
  });
  test("a dead feature says so, and shows no examples", () => {
    const evidence = { ...EVIDENCE, fired: 0, counts: [], edges: [], on: [], together: [] };
    mount({ shown: { ...SHOWN, evidence }, examples: { context: 10, top: [], intervals: [] } });
    expect(el.textContent).toContain("never fires on the 2,000 tokens of the index mine");
    expect(one(".gl-histogram").hidden).toBe(true);
    expect(one(".gl-passages").closest("section")?.hidden).toBe(true);
    expect(one(".gl-ablation").closest("section")?.hidden).toBe(true);
  });
  test("without an index it says how to make one, and the rest stays", () => {
    mount({
      shown: { ...SHOWN, evidence: null, why: "No index is in use. Make one." },
      examples: { context: 10, top: [], intervals: [] },
    });
    expect(one(".gl-card-missing").textContent).toBe("No index is in use. Make one.");
    expect(named("Promoted tokens").textContent).toContain("␣milk");
  });
  test("what the file does not hold is asked for once the card stands", () => {
    mount({ shown: { ...SHOWN, promotes: [] }, more: {} });
    expect(calls("more")).toEqual([{}]);
    expect(el.querySelector("line.gl-mark-threshold")).toBeNull();
    model.update({ more: { feature: "res.5/0", threshold: 2, names: {}, promotes: [[" late", 1]] } });
    expect(el.querySelector("line.gl-mark-threshold")).not.toBeNull();
    expect(named("Promoted tokens").textContent).toContain("␣late");
    model.update({ more: { feature: "res.5/1", threshold: 2, names: {}, promotes: [[" other", 1]] } });
    expect(named("Promoted tokens").textContent).toBe("");
  });
});

describe("examples", () => {
  const peaks = () => all(".gl-said-peak").map((span) => span.textContent);
  test("are coloured on one scale, with the peak marked", () => {
    mount();
    expect(all(".gl-passage").length).toBe(2);
    expect(peaks()).toEqual([" <b>tea</b>", " <b>tea</b>"]);
    const shades = all(".gl-passage:first-child .gl-said").map((span) =>
      Number(span.style.getPropertyValue("--gl-shade") || 0),
    );
    expect(shades[0]).toBe(0);
    expect(shades[2]).toBeGreaterThan(shades[1]);
    expect(shades[2]).toBeLessThan(1); // 8 of the maximum 10
    expect(one(".gl-passage-value").textContent).toBe("0.80");
  });
  test("by interval, strongest first, and an empty one says so", () => {
    mount();
    one('[data-by="interval"]').click();
    expect(all(".gl-passage-group").map((group) => group.textContent)).toEqual(["4.00 to 8.00", "0.00 to 4.00: none"]);
    expect(all(".gl-passage").length).toBe(1);
    press(one('[data-by="interval"]'), "ArrowLeft");
    expect(one('[data-by="strongest"]').getAttribute("aria-selected")).toBe("true");
    expect(document.activeElement).toBe(one('[data-by="strongest"]'));
  });
  test("the context is asked of the kernel; null is the passage", () => {
    mount();
    const select = named("Tokens around the peak") as HTMLSelectElement;
    expect(select.value).toBe("10");
    for (const value of ["5", "null"]) {
      select.value = value;
      select.dispatchEvent(new Event("change"));
    }
    expect(calls("context")).toEqual([{ value: 5 }, { value: null }]);
  });
  test("tokens whose activation is not known stand back", () => {
    mount({ examples: { context: 50, top: [example(0, { known: [1, 3] })], intervals: [] } });
    expect(all(".gl-said-unknown").map((span) => span.textContent)).toEqual(["I", "."]);
    expect(calls("fill")).toEqual([{ by: "strongest" }]);
    model.update({ examples: { context: 50, top: [example(0), example(1, { known: [1, 3] })], intervals: [] } });
    expect(calls("fill").length).toBe(1); // it is on its way
    one('[data-by="interval"]').click();
    expect(calls("fill").length).toBe(1); // all of these are known
  });
  test("a key opens the whole passage, another closes it; arrows walk", async () => {
    mount();
    const [first, second] = all(".gl-passage");
    expect([first.tabIndex, second.tabIndex]).toEqual([0, -1]);
    first.focus();
    press(first, "ArrowDown");
    expect(document.activeElement).toBe(second);
    press(second, "Enter");
    const [{ id, params }] = model.calls("whole");
    expect(params).toEqual({ document: 1, position: 12 });
    // the rest of the examples arrives while the passage is read: the row is another, the key is the same
    model.update({ examples: { context: 10, top: [example(0), example(1)], intervals: [] } });
    expect(document.activeElement).toBe(all(".gl-passage")[1]);
    model.reply({ kind: "value", id, value: example(1, { tokens: ["Long", " ago"], acts: [0, 8], peak: 1 }) });
    await settled();
    const open = all(".gl-passage")[1];
    expect(open.textContent).toContain("Long ago");
    expect(open.getAttribute("aria-expanded")).toBe("true");
    expect(document.activeElement).toBe(open);
    press(open, "Enter");
    expect(all(".gl-passage")[1].textContent).toContain("tea");
  });
  test("a passage that cannot be read is said", async () => {
    mount();
    one(".gl-passage").click();
    const [{ id }] = model.calls("whole");
    model.reply({ kind: "error", id, code: "index-damaged", message: "passages.parquet is damaged." });
    await settled();
    expect(one(".gl-banners").textContent).toContain("passages.parquet is damaged.");
  });
});

describe("one's own text", () => {
  const type = (text: string) => {
    const box = one(".gl-try") as HTMLTextAreaElement;
    box.focus();
    box.value = text;
    box.dispatchEvent(new Event("input"));
  };
  test("is sent when typing pauses, once", () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    mount();
    type("t");
    type("te");
    vi.advanceTimersByTime(200);
    type("tea!");
    expect(model.saves).toBe(0);
    vi.advanceTimersByTime(300);
    expect(model.state.text).toBe("tea!");
    expect(model.saves).toBe(1);
    expect(one(".gl-try-verdict").textContent).toBe("reading…");
  });
  test("a reading is coloured, named and marked in the histogram", () => {
    mount({ text: "tea!", reading: READING });
    expect(one(".gl-try-verdict").textContent).toBe("strongest 0.50 (raw 5.00) on “tea”, on at 1 of 2 tokens");
    expect(el.textContent).toContain("your text 5.00");
    expect(Number(one('[data-token="1"]').style.getPropertyValue("--gl-shade"))).toBeGreaterThan(0.5);
    one('[data-token="1"]').dispatchEvent(new Event("pointerover", { bubbles: true }));
    expect(el.querySelector("line.gl-mark-token")).not.toBeNull();
    one('[data-token="1"]').focus();
    press(one('[data-token="1"]'), "ArrowRight");
    expect(document.activeElement).toBe(one('[data-token="2"]'));
    model.update({ text: "tea!", reading: { ...READING, acts: [0, 0, 0] } });
    expect(one(".gl-try-verdict").textContent).toBe("silent on all 2 tokens");
    expect(el.textContent).not.toContain("your text");
  });
  test("a reading of another feature, or of an older text, is not taken for this one", () => {
    mount({ text: "tea!", reading: { ...READING, feature: "res.5/1" } });
    expect(el.textContent).not.toContain("your text");
    model.update({ reading: { ...READING, text: "tea" } });
    expect(one(".gl-try-verdict").textContent).toBe("reading…");
  });
  test("what is being typed is not overwritten by what the kernel knows", () => {
    mount();
    type("tea an");
    model.update({ text: "tea" });
    expect((one(".gl-try") as HTMLTextAreaElement).value).toBe("tea an");
  });
  test("a refusal is shown with its text", () => {
    mount({
      text: "x",
      reading: { ...READING, text: "x", tokens: [], acts: [], error: "The text has 9 tokens too many." },
    });
    expect(one(".gl-try-verdict").textContent).toBe("The text has 9 tokens too many.");
  });
});

describe("other features", () => {
  test("are named and lead there; arrows walk them", () => {
    mount();
    const [near] = all('[aria-label="Nearest in its own site"] button');
    expect(near.textContent).toBe("res.5/30.50drinks");
    near.click();
    named("Features that fire together").querySelector("button")?.click();
    expect(calls("go")).toEqual([{ feature: "res.5/3" }, { feature: "res.5/9" }]);
    expect(named("Nearest in other sites").textContent).toContain("␣hot");
  });
  test("are asked for with a button where no file holds them", () => {
    mount({ near: null });
    named("Reads the decoders of all open sites, which may take a while").click();
    expect(calls("compare")).toEqual([{}]);
    model.update({ near: { state: "running", error: null, own: [], others: [] } });
    expect(el.textContent).toContain("comparing decoder rows…");
    model.update({ near: { state: "failed", error: "It broke.", own: [], others: [] } });
    expect(el.textContent).toContain("It broke.");
  });
  test("keys and buttons walk; a way back exists only after a jump", () => {
    mount();
    expect((named("Back") as HTMLButtonElement).disabled).toBe(true);
    const place = one(".gl-passage");
    for (const key of ["j", "k", "r", "b", "s"]) press(place, key);
    expect(model.sent.filter((sent) => sent.kind === "call").map((sent) => sent.method)).toEqual([
      "next",
      "previous",
      "random",
      "steer",
    ]);
    model.update({ trail: ["res.5/7"] });
    press(place, "b");
    expect(calls("back")).toEqual([{}]);
    press(one(".gl-try"), "j");
    expect(calls("next").length).toBe(1);
  });
  test("one can go to a feature by name, and is told if there is none", async () => {
    mount();
    const field = named("Go to a feature") as HTMLInputElement;
    field.value = " res.5/99 ";
    press(field, "Enter");
    const [{ id, params }] = model.calls("go");
    expect(params).toEqual({ feature: "res.5/99" });
    model.reply({ kind: "error", id, code: "feature-out-of-range", message: "Feature 99 does not exist." });
    await settled();
    expect(one(".gl-banners").textContent).toContain("Feature 99 does not exist.");
    expect(field.value).toBe(" res.5/99 ");
    press(field, "Enter");
    model.reply({ kind: "value", id: model.calls("go")[1].id, value: null });
    await settled();
    expect(field.value).toBe("");
    expect(one(".gl-banners").textContent).toBe("");
  });
});

describe("what the user says", () => {
  test("a label is edited in its place, kept with Enter and left with Escape", async () => {
    mount();
    const edit = () => all("button").find((button) => button.textContent === "edit label") as HTMLElement;
    edit().click();
    const field = named("Your label") as HTMLInputElement;
    expect(document.activeElement).toBe(field);
    press(field, "Escape");
    expect(field.closest<HTMLElement>(".gl-label-form")?.hidden).toBe(true);
    edit().click();
    field.value = "tea time ";
    press(field, "Enter");
    expect(calls("label")).toEqual([{ value: "tea time" }]);
    model.reply({ kind: "value", id: model.calls("label")[0].id, value: null });
    await settled();
    expect(field.closest<HTMLElement>(".gl-label-form")?.hidden).toBe(true);
  });
  test("a refused label stays in the field", async () => {
    mount();
    (all("button").find((button) => button.textContent === "edit label") as HTMLElement).click();
    const field = named("Your label") as HTMLInputElement;
    field.value = "x";
    press(field, "Enter");
    const [{ id }] = model.calls("label");
    model.reply({ kind: "error", id, code: "labels-busy", message: "The file is in use." });
    await settled();
    expect(field.closest<HTMLElement>(".gl-label-form")?.hidden).toBe(false);
    expect(one(".gl-banners").textContent).toContain("The file is in use.");
  });
  test("a note and a star are kept", () => {
    mount();
    named("Star it").click();
    const note = named("Your note") as HTMLTextAreaElement;
    expect(note.hidden).toBe(true);
    (all("button").find((button) => button.textContent === "add note") as HTMLElement).click();
    expect(note.hidden).toBe(false);
    note.value = "look again";
    note.dispatchEvent(new Event("change"));
    expect(calls("starred")).toEqual([{ value: true }]);
    expect(calls("note")).toEqual([{ value: "look again" }]);
  });
});

describe("what the model loses", () => {
  const ABLATED = {
    state: "running",
    error: null,
    of: 10,
    next: 0.4,
    after: -0.0001,
    helped: 1,
    tokens: 20,
    rows: [{ before: ["a", " cup", " of"], after: [" tea", "."], change: [0.4, -0.1] }],
  };
  test("is measured on request, stopped, and said", () => {
    mount();
    const button = one(".gl-ablation button");
    button.click();
    expect(calls("ablate")).toEqual([{}]);
    model.update({ ablated: ABLATED });
    expect(one(".gl-ablation").textContent).toContain("1 of 10 examples");
    button.click();
    expect(calls("stop")).toEqual([{}]);
    model.update({ ablated: { ...ABLATED, state: "finished" } });
    expect(one(".gl-ablation-words").textContent).toContain("+0.400 nats");
    expect(one(".gl-ablation-words").textContent).toContain("±0.000 on average over the 20 tokens");
    expect(one(".gl-ablation-row").textContent).toContain("␣of → ␣tea");
    model.update({ ablated: { ...ABLATED, state: "failed", error: "A transcoder only reads.", rows: [] } });
    expect(one(".gl-ablation").textContent).toContain("A transcoder only reads.");
  });
});

describe("elsewhere", () => {
  test("the desk the kernel names is drawn below", async () => {
    const host = {
      getWidget: async (ref: string) => ({
        render: async ({ el }: { el: HTMLElement }) => {
          el.textContent = `desk ${ref}`;
        },
      }),
    };
    mount({}, host);
    named("Steer with it").click();
    expect(calls("steer")).toEqual([{}]);
    model.update({ desk: "anywidget:1" });
    await vi.waitFor(() => expect(one(".gl-below").textContent).toContain("desk anywidget:1"));
    named("Close what is open below").click();
    expect(calls("unsteer")).toEqual([{}]);
  });
  test("the static twin shows all of it and offers no kernel's work", async () => {
    mountStatic(el, JSON.parse(JSON.stringify(state({ facts: {}, text: "tea!", reading: READING }))));
    await settled();
    expect(all(".gl-passage").length).toBe(2);
    expect(el.textContent).toContain("your text 5.00");
    expect([named("Back").hidden, one(".gl-card-moves").hidden, one(".gl-go-field").closest("[hidden]")]).toEqual([
      true,
      true,
      one(".gl-card-moves"),
    ]);
    expect((named("Star it") as HTMLButtonElement).disabled).toBe(true);
    one(".gl-passage").click();
    press(one(".gl-passage"), "j");
    await settled();
    expect(el.querySelector(".gl-banner")).toBeNull();
    one('[data-by="interval"]').click();
    expect(all(".gl-passage").length).toBe(1);
  });
  test("two cards stand side by side, live and as a saved picture", async () => {
    const drawn: string[] = [];
    const host = {
      getWidget: async (ref: string) => {
        if (ref === "anywidget:gone") throw new Error("no such widget");
        return { render: async () => void drawn.push(ref) };
      },
    };
    const both = new FakeModel({ left: "anywidget:1", right: "anywidget:gone" });
    await pair.render({ model: both, el, signal: life.signal, host } as never);
    expect(drawn).toEqual(["anywidget:1"]);
    expect(el.textContent).toContain("cannot be shown here: no such widget");
    el.replaceChildren();
    const saved = state({ facts: {} });
    const other = state({ facts: {}, shown: { ...SHOWN, feature: "mlp.9/0" } });
    mountBoth({ model: new FakeModel({ left: saved, right: other }), el });
    expect(all(".gl-card-name").map((name) => name.textContent)).toEqual(["res.5/0", "mlp.9/0"]);
  });
  test("the twin takes the place of the plain picture", () => {
    const box = document.createElement("div");
    box.dataset.gemloupeStatic = "feature-card";
    const data = document.createElement("script");
    data.type = "application/json";
    data.textContent = JSON.stringify(state({ facts: {} }));
    const script = document.createElement("script");
    box.append(data, script);
    el.append(box);
    vi.spyOn(document, "currentScript", "get").mockReturnValue(script);
    mountHere(widget.render);
    expect(one(".gl-card-name").textContent).toBe("res.5/0");
  });
  test("what any host may have put there is read with care", () => {
    for (const bad of [null, 3, "x", [], undefined]) {
      const mine = document.createElement("div");
      const strange = new FakeModel(
        state({ shown: bad, said: bad, examples: bad, near: bad, more: bad, reading: bad, ablated: bad, trail: bad }),
      );
      expect(() => widget.render({ model: strange, el: mine, signal: life.signal } as never)).not.toThrow();
    }
  });
  test("the view goes with its cell and leaves no listener", () => {
    mount();
    life.abort();
    expect(el.childElementCount).toBe(0);
    expect(model.listenerCount()).toBe(0);
  });
});
