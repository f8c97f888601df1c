import { afterEach, beforeEach, expect, test } from "vitest";
import widget, { mountStatic } from "../../js/widgets/token-heatmap";
import { DENSE, FakeModel, press, sampleState, settled, wireActs } from "./fake";

let model: FakeModel;
let life: AbortController;
let el: HTMLElement;

const GOOD = {
  site: "res.12",
  light: "green",
  reason: "40 features on per token, 41 declared",
  tokens: 20,
  l0: 40,
  declaredL0: 41,
  fvu: 0.2,
};
const BAD = { ...GOOD, light: "red", reason: "the reconstruction misses 980% of the variance" };
const mount = () => widget.render({ model, el, signal: life.signal });
const button = () => el.querySelector<HTMLElement>(".gl-light") as HTMLElement;
const reason = () => el.querySelector<HTMLElement>(".gl-light-reason") as HTMLElement;

beforeEach(() => {
  life = new AbortController();
  model = new FakeModel({ ...sampleState(), fidelity: GOOD });
  model.answer = ({ method }) => (method === "facts" ? {} : null);
  el = document.createElement("div");
  document.body.append(el);
});
afterEach(() => {
  life.abort();
  el.remove();
});

test("what is known is shown in words, and its reason at a key", async () => {
  mount();
  expect(button().textContent).toBe("SAE fits");
  expect(button().dataset.light).toBe("green");
  expect(reason().hidden).toBe(true);
  button().click();
  expect(reason().hidden).toBe(false);
  expect(reason().textContent).toBe("res.12: 40 features on per token, 41 declared.");
  expect(button().getAttribute("aria-expanded")).toBe("true");
  press(button(), "Escape");
  expect(reason().hidden).toBe(true);
  await settled();
  expect(model.calls("fidelity")).toEqual([]);
});

test("bad news needs no click", () => {
  model.state.fidelity = BAD;
  mount();
  expect(button().textContent).toBe("SAE does not fit");
  expect(reason().hidden).toBe(false);
});

test("what was not measured is asked for once, and shown when it comes", async () => {
  model.state.fidelity = null;
  model.answer = undefined;
  mount();
  await settled();
  expect(model.calls("fidelity").map((call) => call.params)).toEqual([{ site: "res.12" }]);
  expect(button().textContent).toBe("measuring the fit…");
  model.set("tokens", model.get("tokens"));
  await settled();
  expect(model.calls("fidelity").length).toBe(1);
  model.set("fidelity", BAD);
  expect(button().dataset.light).toBe("red");
});

test("another site's fidelity is never shown for this one", async () => {
  model.answer = undefined;
  mount();
  model.update({ site: "res.5", acts: wireActs(DENSE) });
  await settled();
  expect(button().dataset.light).toBe("none");
  expect(model.calls("fidelity").map((call) => call.params)).toEqual([{ site: "res.5" }]);
});

test("a refusal leaves the light unknown, without a banner", async () => {
  model.state.fidelity = null;
  model.answer = undefined;
  mount();
  await settled();
  const [call] = model.calls("fidelity");
  model.reply({ kind: "error", id: call.id, code: "fidelity-unknown", message: "was not measured" });
  await settled();
  expect(button().textContent).toBe("fit not measured");
  expect(el.querySelector(".gl-banner")?.textContent ?? "").toBe("");
});

test.each([["no site open", ""]])("%s: no light", (_, site) => {
  Object.assign(model.state, { site, sites: [], acts: null, maxima: null, fidelity: null });
  mount();
  expect(el.querySelector<HTMLElement>(".gl-light-box")?.hidden).toBe(true);
});

test.each([[3], ["red"], [{ light: "purple", site: "res.12", reason: "" }], [{ site: "res.12" }]])(
  "%j is not a fidelity",
  (given) => {
    model.state.fidelity = given;
    model.answer = undefined;
    mount();
    expect(button().dataset.light).toBe("none");
  },
);

test("the static twin shows what was known", () => {
  mountStatic(el, { ...sampleState(), facts: {}, fidelity: BAD, acts: null, maxima: null });
  expect(button().textContent).toBe("SAE does not fit");
});
