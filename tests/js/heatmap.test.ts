import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import widget from "../../js/widgets/token-heatmap";
import { array, FakeModel, press, sampleState, settled, wireActs, wireMaxima } from "./fake";

let model: FakeModel;
let life: AbortController;
let el: HTMLElement;

const mount = (target = el) => widget.render({ model, el: target, signal: life.signal });
const one = (selector: string, from = el) => from.querySelector<HTMLElement>(selector) as HTMLElement;
const tokens = (from = el) => [...from.querySelectorAll<HTMLElement>(".gl-token")];
const rows = (from = el) => [...from.querySelectorAll<HTMLElement>(".gl-row")];
const shades = (from = el) => tokens(from).map((span) => Number(span.style.getPropertyValue("--gl-shade") || 0));
const banners = () => [...el.querySelectorAll(".gl-banner")].map((line) => line.textContent);
const FACTS = {
  density: 0.01,
  maximum: 10,
  mean: 2,
  promotes: [
    [" Paris", 3],
    ["<i>", 2],
  ],
  suppresses: [],
};

beforeEach(() => {
  life = new AbortController();
  model = new FakeModel(sampleState());
  model.answer = ({ method, params }) =>
    method === "facts" ? Object.fromEntries((params.features as number[]).map((f) => [f, FACTS])) : null;
  el = document.createElement("div");
  document.body.append(el);
});
afterEach(() => {
  life.abort();
  el.remove();
  vi.useRealTimers();
});

describe("the card of a feature", () => {
  test("opens for the selected feature, by button or key, and closes", async () => {
    const host = {
      getWidget: async (ref: string) => ({
        render: async ({ el }: { el: HTMLElement }) => {
          el.textContent = `card ${ref}`;
        },
      }),
    };
    widget.render({ model, el, signal: life.signal, host } as never);
    expect(one(".gl-opener").hidden).toBe(true);
    press(tokens()[2], "c");
    expect(model.calls("card")).toEqual([]);
    model.update({ selection: { token: null, feature: "res.12/0" } });
    expect(one(".gl-opener").getAttribute("aria-label")).toBe("Card of res.12/0");
    one(".gl-opener").click();
    press(tokens()[2], "c");
    expect(model.calls("card").map((call) => call.params)).toEqual([{ feature: "res.12/0" }, { feature: "res.12/0" }]);
    expect(one(".gl-below").hidden).toBe(true);
    model.update({ below: "anywidget:7" });
    await vi.waitFor(() => expect(one(".gl-below").textContent).toContain("card anywidget:7"));
    one(".gl-below button").click();
    expect(model.calls("uncard").length).toBe(1);
    model.update({ below: null });
    await settled();
    expect(one(".gl-below").hidden).toBe(true);
  });
  test("is not offered by a saved picture", () => {
    model = new FakeModel({ ...sampleState(), facts: {}, selection: { token: null, feature: "res.12/0" } });
    mount();
    expect(one(".gl-clear").hidden).toBe(false);
    expect(one(".gl-opener").hidden).toBe(true);
  });
});

describe("colours", () => {
  test("without a feature every token has its strongest, special tokens nothing", () => {
    mount();
    expect(shades()[0]).toBe(0);
    expect(shades()[3]).toBe(1);
    expect(shades()[4]).toBe(0);
    expect(one(".gl-legend").textContent).toContain("strongest feature");
  });
  test("feature 0 colours the whole text without asking the kernel", async () => {
    mount();
    await settled();
    const asked = model.sent.length;
    rows()
      .find((row) => row.dataset.feature === "0")
      ?.click();
    expect(model.get("selection")).toEqual({ token: null, feature: "res.12/0" });
    expect(shades()).toEqual([0, 0, expect.closeTo(0.918, 3), expect.closeTo(0.475, 3), 0]);
    expect(model.sent.length).toBe(asked);
    expect(one(".gl-legend").textContent).toContain("1.0 (raw 10.0)");
  });
  test("a feature that someone named shows its name, the others none", async () => {
    model.answer = ({ method, params }) =>
      method === "facts"
        ? Object.fromEntries((params.features as number[]).map((f) => [f, f ? FACTS : { ...FACTS, label: "<b>zero" }]))
        : null;
    mount();
    await settled();
    const names = rows().map((row) => [row.dataset.feature, row.querySelector(".gl-row-name")?.textContent]);
    expect(names.filter(([, name]) => name)).toEqual([["0", "<b>zero"]]);
  });
  test("a feature without a known maximum says so", () => {
    model.state.selection = { token: null, feature: "res.12/3" };
    mount();
    expect(one(".gl-legend").textContent).toContain("maximum unknown");
    expect(one('.gl-row[data-feature="3"] .gl-row-strength').textContent).toBe("?");
  });
  test("a feature of another site colours nothing here", () => {
    model.state.selection = { token: null, feature: "res.5/0" };
    mount();
    expect(one(".gl-clear").hidden).toBe(true);
  });
  test("the palette is the model's", () => {
    mount();
    one('[data-palette="orange"]').click();
    expect(model.get("palette")).toBe("orange");
    expect(one(".gl-root").style.getPropertyValue("--gl-hue")).toBe("255 145 48");
    expect(one('[data-palette="orange"]').getAttribute("aria-checked")).toBe("true");
  });
});

describe("choosing", () => {
  test("a token fills the list with its features; clicking again takes it back", async () => {
    mount();
    tokens()[2].click();
    expect(model.get("selection")).toEqual({ token: 2, feature: null });
    expect(model.saves).toBe(1);
    expect(one(".gl-list-title").textContent).toContain("␣City");
    expect(rows().map((row) => row.dataset.feature)).toEqual(["0", "2"]);
    await settled();
    expect([...rows()[0].querySelectorAll(".gl-chip")].map((chip) => chip.textContent)).toEqual(["␣Paris", "<i>"]);
    tokens()[2].click();
    expect(model.get("selection")).toEqual({ token: null, feature: null });
    expect(one(".gl-list-title").textContent).toBe("strongest in the text");
  });
  test("token 0 can be chosen, and has no features because it is special", () => {
    mount();
    tokens()[0].click();
    expect(model.get("selection")).toEqual({ token: 0, feature: null });
    expect(tokens()[0].getAttribute("aria-selected")).toBe("true");
    expect(one(".gl-list").textContent).toContain("Special tokens");
  });
  test("the guesses after the chosen token are listed, as text", () => {
    mount();
    tokens()[4].click();
    expect(one(".gl-next").textContent).toContain("<b>x</b>");
    expect(el.querySelector("b")).toBeNull();
  });
  test("what Python selects is shown", () => {
    mount();
    model.update({ selection: { token: 3, feature: "res.12/0" } });
    expect(tokens()[3].getAttribute("aria-selected")).toBe("true");
    expect(one(".gl-clear").textContent).toContain("res.12/0");
    expect(shades()[2]).toBeGreaterThan(0.9);
  });
  test("nonsense in the selection is nothing selected", () => {
    mount();
    for (const selection of [null, {}, { token: -1 }, { token: 99 }, { token: 1.5, feature: 7 }, { feature: "834" }]) {
      model.update({ selection });
      expect(el.querySelectorAll('[aria-selected="true"]').length).toBe(0);
    }
  });
  test("facts are asked for once", async () => {
    mount();
    await settled();
    tokens()[2].click();
    tokens()[3].click();
    tokens()[2].click();
    await settled();
    const asked = model.calls("facts").flatMap((call) => call.params.features as number[]);
    expect(asked.sort()).toEqual([0, 2, 3]);
  });
});

describe("keys", () => {
  test("arrows walk, Enter chooses, j and k walk the features, Escape clears", () => {
    mount();
    press(one(".gl-root"), "ArrowRight");
    press(document.activeElement as Element, "ArrowRight");
    press(document.activeElement as Element, "ArrowRight");
    expect(document.activeElement).toBe(tokens()[2]);
    press(tokens()[2], "Enter");
    expect(model.get("selection")).toEqual({ token: 2, feature: null });
    press(tokens()[2], "j");
    expect(model.get("selection")).toEqual({ token: 2, feature: "res.12/0" });
    press(tokens()[2], "j");
    press(tokens()[2], "j");
    expect(model.get("selection")).toEqual({ token: 2, feature: "res.12/2" });
    press(tokens()[2], "k");
    expect(model.get("selection")).toEqual({ token: 2, feature: "res.12/0" });
    press(tokens()[2], "Escape");
    expect(model.get("selection")).toEqual({ token: null, feature: null });
  });
  test("[ and ] ask for the neighbouring site", () => {
    mount();
    press(tokens()[1], "]");
    expect(model.calls("site")).toEqual([]);
    press(tokens()[1], "[");
    expect(model.calls("site")[0].params).toEqual({ site: "res.5" });
  });
  test("the host keeps its own keys, and ours while we have them", () => {
    mount();
    const seen: boolean[] = [];
    const listen = () => seen.push(one(".gl-root").hasAttribute("data-lm-suppress-shortcuts"));
    document.addEventListener("keydown", listen, { capture: true, signal: life.signal });
    press(tokens()[1], "j");
    press(tokens()[1], "Enter");
    press(tokens()[1], "s", { ctrlKey: true });
    press(tokens()[1], "Enter", { shiftKey: true });
    press(tokens()[1], "x");
    expect(seen).toEqual([true, true, false, false, false]);
  });
});

describe("words for screen readers", () => {
  test("every token says its place, text and strongest feature", () => {
    mount();
    expect(tokens().map((span) => span.getAttribute("aria-label"))).toEqual([
      "token 1 of 5, '<bos>', special",
      "token 2 of 5, 'The', strongest feature 2 at 0.25",
      "token 3 of 5, ' City', strongest feature 0 at 0.80",
      "token 4 of 5, ' of', strongest feature 3 at raw 5.00",
      "token 5 of 5, ' Light', no feature is on",
    ]);
  });
  test("with a feature chosen they speak of that feature, and the choice is announced", () => {
    mount();
    model.update({ selection: { token: 2, feature: "res.12/0" } });
    expect(tokens()[2].getAttribute("aria-label")).toBe("token 3 of 5, ' City', feature 0 at 0.80");
    expect(tokens()[1].getAttribute("aria-label")).toBe("token 2 of 5, 'The', feature 0 is off");
    expect(one(".gl-unseen").textContent).toContain("text coloured by feature 0");
  });
});

test("hovering shows the token's strongest features and the guesses", () => {
  mount();
  tokens()[2].getClientRects = () => [new DOMRect(10, 10, 20, 20)] as unknown as DOMRectList;
  tokens()[2].dispatchEvent(new Event("pointerover", { bubbles: true }));
  const card = one(".gl-tooltip");
  expect(card.classList.contains("gl-open")).toBe(true);
  expect(card.textContent).toContain("␣City");
  expect(card.textContent).toContain("0.80raw 8.00");
  expect(card.textContent).toContain("90 %");
  expect(model.sent.every((message) => message.method !== "hover")).toBe(true);
  expect(model.get("selection")).toEqual({ token: null, feature: null });
  one(".gl-strip").dispatchEvent(new Event("pointerleave"));
  expect(card.classList.contains("gl-open")).toBe(false);
});

describe("sites", () => {
  test("a new site is one new picture, when its activations have come too", async () => {
    mount();
    model.update({ selection: { token: 2, feature: "res.12/0" } });
    model.update({ site: "res.5" });
    await settled();
    expect(one("select").getAttribute("aria-label")).toBe("Site");
    expect((one("select") as HTMLSelectElement).value).toBe("res.12");
    model.update({
      acts: wireActs(Array(5).fill([0, 3])),
      maxima: wireMaxima({ 1: 3 }, Array(5).fill([0, 3])),
      selection: { token: 2, feature: null },
    });
    await settled();
    expect((one("select") as HTMLSelectElement).value).toBe("res.5");
    expect(shades()).toEqual([0, 1, 1, 1, 1]);
    expect(rows().map((row) => row.dataset.feature)).toEqual(["1"]);
    expect(tokens()[2].getAttribute("aria-selected")).toBe("true");
  });
  test("choosing another site before the first has come cancels the first", () => {
    model.answer = undefined;
    model.state.sites = ["res.3", "res.5", "res.12"];
    mount();
    press(tokens()[1], "[");
    press(tokens()[1], "[");
    const [first, second] = model.calls("site");
    expect(second.params).toEqual({ site: "res.3" });
    expect(model.sent.filter((message) => message.kind === "cancel").map((message) => message.id)).toEqual([first.id]);
  });
  test("a site that cannot be opened is said, and the picture stays", async () => {
    vi.spyOn(console, "warn").mockImplementation(() => undefined);
    model.answer = undefined;
    mount();
    press(tokens()[1], "[");
    model.reply({ kind: "error", id: model.calls("site")[0].id, code: "site-not-open", message: "res.5 is not open." });
    await settled();
    expect(banners()).toEqual(["res.5 is not open."]);
    expect((one("select") as HTMLSelectElement).value).toBe("res.12");
  });
  test("without a site there are tokens and guesses only", () => {
    Object.assign(model.state, { site: "", sites: [], acts: null, maxima: null });
    mount();
    expect(shades()).toEqual([0, 0, 0, 0, 0]);
    expect(one(".gl-legend").textContent).toContain("no site open");
    tokens()[2].click();
    expect(one(".gl-next").textContent).toContain("90 %");
  });
});

describe("two views of one model", () => {
  test("agree on the selection; what the pointer is over is their own", () => {
    const other = document.createElement("div");
    document.body.append(other);
    mount();
    mount(other);
    tokens()[2].click();
    expect(tokens(other)[2].getAttribute("aria-selected")).toBe("true");
    rows(other)[0].click();
    expect(shades()).toEqual(shades(other));
    tokens()[1].dispatchEvent(new Event("pointerover", { bubbles: true }));
    expect(one(".gl-tooltip").classList.contains("gl-open")).toBe(true);
    expect(one(".gl-tooltip", other).classList.contains("gl-open")).toBe(false);
    other.remove();
  });
  test("a view that is closed leaves nothing behind", () => {
    mount();
    expect(model.listenerCount()).toBeGreaterThan(0);
    life.abort();
    expect(model.listenerCount()).toBe(0);
    expect(el.childElementCount).toBe(0);
  });
});

describe("trouble", () => {
  test("another version of the wire is said, and nothing is misread", () => {
    model.state.protocol = 2;
    mount();
    expect(banners()[0]).toContain("Reload the page");
    expect(tokens()).toEqual([]);
  });
  test("activations that cannot be read are said", () => {
    vi.spyOn(console, "error").mockImplementation(() => undefined);
    model.state.acts = { ...wireActs([[1]]), indptr: array("u4", [0]) };
    mount();
    expect(banners()[0]).toContain("cannot be shown");
  });
  test("a silent kernel is said after five seconds; choosing still works; an answer takes it back", async () => {
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval", "setTimeout", "clearTimeout", "performance"] });
    model.answer = undefined;
    mount();
    await vi.advanceTimersByTimeAsync(5600);
    expect(banners()).toEqual(["The kernel does not answer (busy or stopped). What is shown stays."]);
    tokens()[2].click();
    rows()[0].click();
    expect(shades()[2]).toBeGreaterThan(0.9);
    model.reply({ kind: "value", id: 1, value: null });
    expect(banners()).toEqual([]);
  });
});
