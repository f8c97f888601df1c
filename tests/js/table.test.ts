import { afterEach, beforeEach, expect, test, vi } from "vitest";
import widget from "../../js/widgets/feature-table";
import { FakeModel, press, sampleState, wireActs } from "./fake";

let model: FakeModel;
let life: AbortController;
let el: HTMLElement;

const rows = () => [...el.querySelectorAll<HTMLElement>(".gl-tspace .gl-tr")];
const features = () => rows().map((row) => Number(row.dataset.feature));
const head = (column: string) => el.querySelector(`[data-column="${column}"]`) as HTMLElement;
const facts = (feature: number) => ({
  density: feature === 2 ? null : 0.1 / (feature + 1),
  maximum: 10,
  mean: 2,
  promotes: [[feature === 3 ? " Louvre" : " tea", 3]],
  suppresses: [],
});

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  life = new AbortController();
  model = new FakeModel(sampleState());
  model.answer = ({ params }) => Object.fromEntries((params.features as number[]).map((f) => [f, facts(f)]));
  el = document.createElement("div");
  document.body.append(el);
});
afterEach(() => {
  life.abort();
  el.remove();
  vi.useRealTimers();
});
const mount = async () => {
  widget.render({ model, el, signal: life.signal });
  await vi.advanceTimersByTimeAsync(100);
};

test("one row per feature that is on, the strongest first, with what is known of it", async () => {
  await mount();
  expect(features()).toEqual([3, 0, 2]);
  expect([...rows()[1].children].map((cell) => cell.textContent)).toEqual([
    "0",
    "0.80",
    "8.00",
    "␣City2",
    "10 %",
    "␣tea",
  ]);
  expect(rows()[0].textContent).toContain("?");
  expect(rows()[2].querySelector(".gl-td-density")?.textContent).toBe("?");
});
test("a label stands before the promoted tokens and passes the filter", async () => {
  model.answer = ({ params }) =>
    Object.fromEntries(
      (params.features as number[]).map((f) => [f, f === 0 ? { ...facts(f), label: "names of <cities>" } : facts(f)]),
    );
  await mount();
  expect(rows()[1].querySelector(".gl-td-promotes")?.firstChild?.textContent).toBe("names of <cities>");
  const filter = el.querySelector("input") as HTMLInputElement;
  filter.value = "Cities";
  filter.dispatchEvent(new Event("input"));
  await vi.advanceTimersByTimeAsync(300);
  expect(features()).toEqual([0]);
});
test("sorts by any column, and says so", async () => {
  await mount();
  head("raw").click();
  expect(features()).toEqual([2, 0, 3]);
  expect(head("raw").closest("[role=columnheader]")?.getAttribute("aria-sort")).toBe("descending");
  head("feature").click();
  expect(features()).toEqual([0, 2, 3]);
  head("feature").click();
  expect(features()).toEqual([3, 2, 0]);
  head("density").click();
  expect(features()).toEqual([0, 3, 2]);
  head("density").click();
  expect(features()).toEqual([3, 0, 2]);
});
test("filters by number, by token and by promoted text", async () => {
  await mount();
  const filter = el.querySelector("input") as HTMLInputElement;
  const type = async (text: string) => {
    filter.value = text;
    filter.dispatchEvent(new Event("input"));
    await vi.advanceTimersByTimeAsync(100);
    return features();
  };
  expect(await type("0")).toEqual([0]);
  expect(await type("city")).toEqual([0]);
  head("feature").click();
  expect(await type("louvre")).toEqual([3]);
  expect(el.querySelector(".gl-count")?.textContent).toBe("1 feature");
  head("strength").click();
  expect(await type("nothing like it")).toEqual([]);
  expect(el.querySelector(".gl-none")?.textContent).toContain("filter");
  expect(await type("")).toEqual([3, 0, 2]);
});
test("a row chooses its feature; keys walk and choose", async () => {
  await mount();
  rows()[1].click();
  expect(model.get("selection")).toEqual({ token: null, feature: "res.12/0" });
  rows()[1].focus();
  press(rows()[1], "ArrowDown");
  expect((document.activeElement as HTMLElement).dataset.feature).toBe("2");
  press(document.activeElement as Element, "Enter");
  expect(model.get("selection")).toEqual({ token: null, feature: "res.12/2" });
  expect(rows()[2].getAttribute("aria-selected")).toBe("true");
});
test("the chosen token's features alone, token 0 too", async () => {
  await mount();
  model.update({ selection: { token: 2, feature: null } });
  expect(features()).toEqual([0, 2]);
  (el.querySelector(".gl-clear") as HTMLElement).click();
  expect(features()).toEqual([3, 0, 2]);
  model.update({ selection: { token: 0, feature: null } });
  expect(features()).toEqual([]);
});
test("of thousands of features only those in sight are drawn and asked for", async () => {
  const width = 5000;
  model.state.acts = wireActs([Array(width).fill(0), Array.from({ length: width }, (_, i) => i + 1)]);
  model.state.tokens = (model.state.tokens as unknown[]).slice(0, 2);
  model.state.maxima = null;
  await mount();
  expect(rows().length).toBeLessThan(40);
  expect(el.querySelector("[role=grid]")?.getAttribute("aria-rowcount")).toBe("5001");
  const asked = model.calls("facts").flatMap((call) => call.params.features as number[]);
  expect(asked.length).toBe(rows().length);
  const scroller = el.querySelector(".gl-tscroll") as HTMLElement;
  scroller.scrollTop = 3000;
  scroller.dispatchEvent(new Event("scroll"));
  expect(rows()[0].getAttribute("aria-rowindex")).toBe("96");
});
test("a filter by text asks about every feature, and counts what it then finds", async () => {
  const width = 1200;
  model.state.acts = wireActs([Array(width).fill(0), Array.from({ length: width }, (_, i) => i + 1)]);
  model.state.tokens = (model.state.tokens as unknown[]).slice(0, 2);
  model.state.maxima = null;
  await mount();
  const filter = el.querySelector("input") as HTMLInputElement;
  filter.value = "tea";
  filter.dispatchEvent(new Event("input"));
  await vi.advanceTimersByTimeAsync(200);
  expect(el.querySelector(".gl-count")?.textContent).toBe(`${width - 1} features`);
  expect(model.calls("facts").every((call) => (call.params.features as number[]).length <= 512)).toBe(true);
});
