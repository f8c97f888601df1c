import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { Hit } from "../../js/core/hit";
import widget, { mountStatic } from "../../js/widgets/search-results";
import { FakeModel, press, settled } from "./fake";

let model: FakeModel;
let life: AbortController;
let el: HTMLElement;

function hit(feature: string, more: Partial<Hit> = {}): Hit {
  return {
    feature,
    label: "",
    source: "",
    by: "",
    score: null,
    strength: null,
    raw: null,
    density: null,
    token: "",
    position: null,
    group: "",
    a: [null, null],
    b: [null, null],
    words: [],
    cosine: null,
    ...more,
  };
}

const TEXT = [
  hit("res.5/3", {
    label: "idioms <b>",
    source: "user",
    strength: 0.5,
    raw: 12,
    density: 0.01,
    token: " cats",
    position: 3,
  }),
  hit("mlp.9/0", { label: "on “dogs”", source: "automatic", strength: null, raw: 2, token: " dogs", position: 5 }),
  hit("res.12/7", { label: "rain", source: "Neuronpedia", score: 0.9, strength: 0.2, raw: 700 }),
];
const CONTRAST = [
  hit("res.5/1", { group: "only a", a: [0.5, 3], b: [0, 0], raw: -3, strength: -0.5 }),
  hit("res.5/2", { group: "changed", a: [0.5, 3], b: [0.75, 4.5], raw: 1.5, strength: 0.25 }),
];
const state = (more: Record<string, unknown> = {}) => ({
  protocol: 1,
  about: { model: "tiny", scope: null, device: "cpu", dtype: "float32", note: "" },
  kind: "text",
  query: "It rains cats and dogs",
  rows: TEXT,
  relative: true,
  dense: false,
  hidden: 4,
  complete: true,
  notes: [],
  selection: { feature: null },
  desk: null,
  palette: "blue",
  facts: null,
  ...more,
});
const rows = () => [...el.querySelectorAll<HTMLElement>(".gl-found[data-feature]")];
const features = () => rows().map((row) => row.dataset.feature);
const calls = (method: string) => model.calls(method).map((one) => one.params);

beforeEach(() => {
  life = new AbortController();
  el = document.createElement("div");
  document.body.append(el);
});
afterEach(() => {
  life.abort();
  el.remove();
});
function mount(more: Record<string, unknown> = {}, host?: unknown) {
  model = new FakeModel(state(more));
  widget.render({ model, el, signal: life.signal, host } as never);
}

test("a row for each feature, in the kernel's order, with its numbers and whose label it is", () => {
  mount();
  expect(features()).toEqual(["res.5/3", "mlp.9/0", "res.12/7"]);
  const cells = [...rows()[0].children].map((cell) => cell.textContent);
  expect(cells).toEqual(["res.5/3", "0.50", "12.0", "␣cats", "1.0 %", "idioms <b>yours", "cardsteer"]);
  expect(rows()[1].textContent).toContain("?");
  expect(rows()[2].textContent).toContain("Neuronpedia 0.90");
  expect(el.querySelector("b")).toBeNull();
  expect(el.querySelector("[role=status].gl-search-count")?.textContent).toBe("3 features");
  expect(el.textContent).toContain("dense features (4 hidden)");
});
test("a contrast is in groups, and says what each side has", () => {
  mount({ kind: "contrast", rows: CONTRAST, query: "a: one\nb: two" });
  expect([...el.querySelectorAll(".gl-found-group")].map((one) => one.textContent)).toEqual([
    "Only in a (1)",
    "In both, changed (1)",
  ]);
  expect([...rows()[0].querySelectorAll(".gl-found-side")].map((one) => one.textContent)).toEqual(["a0.50", "b–"]);
});
test("the ranking and dense features are asked of the kernel", async () => {
  mount();
  const rank = el.querySelector("select") as HTMLSelectElement;
  rank.value = "raw";
  rank.dispatchEvent(new Event("change"));
  const box = el.querySelector("input[type=checkbox]") as HTMLInputElement;
  box.click();
  expect(calls("rank")).toEqual([
    { relative: false, dense: false },
    { relative: false, dense: true },
  ]);
  model.update({ rows: [TEXT[2]], relative: false, dense: true, hidden: 0 });
  await settled();
  expect(features()).toEqual(["res.12/7"]);
  expect(rank.value).toBe("raw");
});
test("words and neighbours have nothing to rank", () => {
  mount({ kind: "words", rows: [hit("res.1/1", { label: "x" })] });
  expect((el.querySelector("select") as HTMLElement).hidden).toBe(true);
});
test("a filter looks at names, labels and tokens", () => {
  mount();
  const filter = el.querySelector("input[type=search]") as HTMLInputElement;
  filter.value = "DOGS";
  filter.dispatchEvent(new Event("input"));
  expect(features()).toEqual(["mlp.9/0"]);
  filter.value = "nothing of the kind";
  filter.dispatchEvent(new Event("input"));
  expect(el.textContent).toContain("No feature passes the filter.");
});
test("clicking chooses, clicking again gives up", () => {
  mount();
  rows()[1].click();
  expect(model.get("selection")).toEqual({ feature: "mlp.9/0" });
  expect(rows()[1].getAttribute("aria-selected")).toBe("true");
  rows()[1].click();
  expect(model.get("selection")).toEqual({ feature: null });
});
test("keys walk the rows, choose and steer; only one row is in the tab order", () => {
  mount();
  expect(rows().map((row) => row.tabIndex)).toEqual([0, -1, -1]);
  rows()[0].focus();
  press(rows()[0], "ArrowDown");
  expect(document.activeElement).toBe(rows()[1]);
  expect(rows().map((row) => row.tabIndex)).toEqual([-1, 0, -1]);
  press(rows()[1], "Enter");
  expect(model.get("selection")).toEqual({ feature: "mlp.9/0" });
  press(rows()[1], "End");
  expect(document.activeElement).toBe(rows()[2]);
  press(rows()[2], "s");
  expect(calls("steer")).toEqual([{ feature: "res.12/7" }]);
  press(rows()[2], "k");
  expect(model.get("selection")).toEqual({ feature: "res.5/3" });
  press(rows()[2], "Escape");
  expect(model.get("selection")).toEqual({ feature: null });
});
test("a button steers with its feature, and a refusal is said", async () => {
  mount();
  (rows()[1].querySelector("button:not(.gl-found-card)") as HTMLElement).click();
  const [{ id, params }] = model.calls("steer");
  expect(params).toEqual({ feature: "mlp.9/0" });
  model.reply({ kind: "error", id, code: "maximum-unknown", message: "Its maximum is not known." });
  await settled();
  expect(el.textContent).toContain("maximum is not known");
  expect(model.get("selection")).toEqual({ feature: null });
});
test("the desk the kernel names is drawn below, and goes with it", async () => {
  const drawn: AbortSignal[] = [];
  const host = {
    async getWidget(ref: string) {
      return {
        async render({ el, signal }: { el: HTMLElement; signal: AbortSignal }) {
          el.textContent = `desk ${ref}`;
          drawn.push(signal);
        },
      };
    },
  };
  mount({}, host);
  const below = el.querySelector(".gl-below") as HTMLElement;
  expect(below.hidden).toBe(true);
  model.update({ desk: "anywidget:42" });
  await vi.waitFor(() => expect(below.textContent).toContain("desk anywidget:42"));
  expect(below.hidden).toBe(false);
  (below.querySelector("button") as HTMLElement).click();
  expect(calls("unsteer").length).toBe(1);
  model.update({ desk: null });
  await settled();
  expect(below.hidden).toBe(true);
  expect(drawn[0].aborted).toBe(true);
});
test("a button and a key open a feature's card", () => {
  mount();
  (rows()[1].querySelector(".gl-found-card") as HTMLElement).click();
  press(rows()[2], "c");
  expect(calls("card")).toEqual([{ feature: "mlp.9/0" }, { feature: "res.12/7" }]);
  expect(model.get("selection")).toEqual({ feature: null });
});
test("a sample is called one", () => {
  mount({ kind: "words", complete: false });
  expect(el.textContent).toContain("a sample from every site");
});
test("the static twin shows the rows and offers no kernel's work", () => {
  mountStatic(el, state({ facts: {} }));
  expect(features()).toEqual(["res.5/3", "mlp.9/0", "res.12/7"]);
  expect([...el.querySelectorAll<HTMLElement>(".gl-found-steer")].every((one) => one.hidden)).toBe(true);
  expect((el.querySelector("select") as HTMLSelectElement).disabled).toBe(true);
});
test("the view goes when its cell goes", () => {
  mount();
  life.abort();
  expect(el.childElementCount).toBe(0);
});
