import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { standalone, svgUrl } from "../../js/components/save-picture";
import widget, { mountStatic } from "../../js/widgets/layer-evolution";
import { evolutionState, PLAIN, wireEvolution, wireGuesses } from "./evolution-fake";
import { FakeModel, press, settled, token } from "./fake";

let model: FakeModel;
let life: AbortController;
let el: HTMLElement;

beforeEach(() => {
  life = new AbortController();
  el = document.createElement("div");
  document.body.append(el);
});
afterEach(() => {
  life.abort();
  el.remove();
  vi.useRealTimers();
  vi.restoreAllMocks();
});
function mount(more: Record<string, unknown> = {}) {
  model = new FakeModel(evolutionState(more));
  widget.render({ model, el, signal: life.signal } as never);
}
const one = <T extends Element = HTMLElement>(selector: string) => el.querySelector<T>(selector) as T;
const all = (selector: string) => [...el.querySelectorAll<HTMLElement>(selector)];
const blocks = () => all(".gl-block").map((block) => block.dataset.feature);
const block = (name: string) => one<SVGElement>(`.gl-block[data-feature="${name}"]`);
const click = (target: Element) => target.dispatchEvent(new MouseEvent("click", { bubbles: true, composed: true }));
const scrub = (at: number) =>
  one(`.gl-scrub [data-token="${at}"]`).dispatchEvent(new MouseEvent("pointerdown", { bubbles: true }));
const banner = () => one(".gl-banners").textContent ?? "";

/** As the kernel writes it into a page. */
function saved(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(saved);
  if (typeof value !== "object" || value === null) return value;
  if ("data" in value) {
    const { data, ...rest } = value as { data: DataView };
    return {
      ...rest,
      base64: btoa(String.fromCharCode(...new Uint8Array(data.buffer, data.byteOffset, data.byteLength))),
    };
  }
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, saved(part)]));
}

const LED = {
  target: { feature: null, token: 101, text: " Paris" },
  position: 1,
  value: 12,
  effects: 1234,
  explained: 0.4,
  error: 0.1,
  notes: [],
  edges: [
    { feature: "res.0/0", position: 1, effect: 2, measured: 1.9, raw: 4, strength: 0.5 },
    { feature: "res.2/77", position: 1, effect: -1, measured: null, raw: 3, strength: 0.3 },
    { feature: "res.0/3", position: 2, effect: 1, measured: null, raw: 2, strength: 0.5 },
  ],
};

describe("the picture", () => {
  test("shows the chosen token's features with ribbons, a gap and the guesses", () => {
    mount();
    expect(blocks().sort()).toEqual(["mlp.0/5", "mlp.2/5", "res.0/0", "res.0/3", "res.1/1", "res.1/7", "res.2/2"]);
    expect(all(".gl-ribbon")).toHaveLength(2);
    expect(one(".gl-plot-gap").textContent).toBe("mlp.1 is not open");
    expect(all(".gl-strips .gl-guess-at text").map((text) => text.textContent)).toEqual(["x", "y", "Paris"]);
    expect(block("res.1/7").getAttribute("aria-label")).toContain("continues res.0/0, goes on as res.2/2");
    expect(block("res.1/7").getAttribute("aria-label")).toContain("on “a”");
  });
  test("scrubs without a word to the kernel, which hears of the last token once", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    mount();
    for (let i = 0; i < 10; i++) scrub(i % 2 === 0 ? 2 : 1);
    scrub(2);
    expect(blocks()).toContain("res.2/9");
    expect(model.sent).toEqual([]);
    expect(model.saves).toBe(0);
    await vi.advanceTimersByTimeAsync(1000);
    expect(model.saves).toBe(1);
    expect(model.get("selection")).toEqual({ token: 2, feature: null });
    expect(model.sent).toEqual([]);
  });
  test("shows guesses that come after the rest, and says so until then", () => {
    const first = wireGuesses({ guesses: [null, ["x", "y", " Paris"], null] });
    mount({ guesses: first, guessing: true });
    const guesses = () => all(".gl-strips .gl-guess-at text").map((text) => text.textContent);
    expect([guesses().length, one(".gl-plot-note").textContent]).toEqual([3, ""]);
    scrub(2);
    expect(guesses()).toEqual([]);
    expect(one(".gl-plot-note").textContent).toContain("follow in a moment");
    model.update({ guessing: false, guesses: wireGuesses(PLAIN) });
    expect(guesses()).toEqual(["x", "x", "y"]);
    expect(one('.gl-scrub [aria-selected="true"]').dataset.token).toBe("2");
    expect(one(".gl-plot-note").textContent).toBe("");
  });
  test("walks with the arrows, token 0 included", () => {
    mount();
    press(one(".gl-scrub-line"), "ArrowLeft");
    expect(one('.gl-scrub [aria-selected="true"]').dataset.token).toBe("0");
    expect(blocks()).toEqual([]);
    expect(one(".gl-plot-note").textContent).toContain("special token");
    press(one(".gl-scrub-line"), "ArrowLeft");
    press(one(".gl-scrub-line"), "End");
    expect(one('.gl-scrub [aria-selected="true"]').dataset.token).toBe("2");
  });
  test("says what is under the pointer, with cosine and co-activation", () => {
    mount();
    block("res.1/7").dispatchEvent(new MouseEvent("pointerover", { bubbles: true }));
    const said = one(".gl-tooltip").textContent;
    expect(said).toContain("strength 0.80");
    expect(said).toContain("raw 8.00");
    expect(said).toContain("from res.0/0: cosine 0.90, fire together on 50 % of their tokens");
    expect(said).toContain("goes on as res.2/2: cosine 0.80, co-activation not known");
    all(".gl-strips [data-layer]")[1].dispatchEvent(new MouseEvent("pointerover", { bubbles: true }));
    expect(one(".gl-tooltip").textContent).toContain("after layer 1");
    expect(one(".gl-tooltip").textContent).toContain("res.1: L0 2");
    one(".gl-ribbon").dispatchEvent(new MouseEvent("pointerover", { bubbles: true }));
    expect(one(".gl-tooltip").textContent).toContain("res.0/0 → res.1/7");
  });
  test("the layers below are walked by keyboard, and say what stands there", () => {
    mount();
    const strip = one<SVGElement>(".gl-strips");
    const token = one('.gl-scrub [aria-selected="true"]').dataset.token;
    strip.focus();
    expect(strip.getAttribute("aria-valuenow")).toBe("2");
    press(strip, "ArrowLeft");
    expect(strip.getAttribute("aria-valuetext")).toMatch(/^layer 1: guess 'y', entropy [\d.]+ nats$/);
    press(strip, "Home");
    press(strip, "ArrowLeft");
    expect(strip.getAttribute("aria-valuenow")).toBe("0");
    expect(one('.gl-scrub [aria-selected="true"]').dataset.token).toBe(token);
    strip.blur();
    expect(all(".gl-layer-at")).toHaveLength(0);
  });
  test("follows a feature through the layers, and Escape ends it", async () => {
    mount();
    click(block("res.0/0"));
    expect(model.get("selection")).toEqual({ token: 1, feature: "res.0/0" });
    expect(block("res.2/2").hasAttribute("data-dim")).toBe(false);
    expect(block("mlp.0/5").hasAttribute("data-dim")).toBe(true);
    expect(all(".gl-inspect-path button").map((step) => step.textContent)).toEqual([
      "res.0/0 0.50",
      "res.1/7 0.80",
      "res.2/2 0.50",
    ]);
    expect(model.calls("facts")).toHaveLength(1);
    press(block("res.0/0"), "Escape");
    expect(model.get("selection")).toEqual({ token: 1, feature: null });
    expect(all("[data-dim]")).toHaveLength(0);
  });
  test("moves over blocks by keyboard and follows with Enter", () => {
    mount();
    block("res.0/0").focus();
    press(block("res.0/0"), "ArrowRight");
    expect(document.activeElement?.getAttribute("data-feature")).toBe("res.1/7");
    press(document.activeElement as Element, "Enter");
    expect(model.get("selection")).toEqual({ token: 1, feature: "res.1/7" });
    expect(all(".gl-block[tabindex='0']")).toHaveLength(1);
  });
  test("opens the card of what is followed", () => {
    mount({ selection: { token: 1, feature: "res.1/7" } });
    one(".gl-open-card").click();
    expect(model.calls("card").map(({ params }) => params)).toEqual([{ feature: "res.1/7" }]);
    press(one(".gl-scrub-line"), "c");
    expect(model.calls("card")).toHaveLength(2);
    for (const kind of ["click", "click", "dblclick"])
      block("res.0/0").dispatchEvent(new MouseEvent(kind, { bubbles: true, composed: true }));
    expect(model.calls("card")[2].params).toEqual({ feature: "res.0/0" });
    expect(model.get("selection")).toEqual({ token: 1, feature: "res.0/0" });
  });
  test("hides a band that is not wanted, never the last", () => {
    mount();
    const [res, mlp] = all(".gl-bands button");
    click(res);
    expect(blocks().every((name) => name?.startsWith("mlp."))).toBe(true);
    click(mlp);
    expect(blocks().length).toBe(7);
  });
  test("says when what came cannot be shown", () => {
    vi.spyOn(console, "error").mockImplementation(() => undefined);
    mount({ layers: { ...wireEvolution(PLAIN), sites: ["res.0"] } });
    expect(banner()).toContain("cannot be shown");
  });
  test("leaves nothing behind", () => {
    mount();
    life.abort();
    expect(model.listenerCount()).toBe(0);
    expect(el.children).toHaveLength(0);
  });
});

describe("what leads to a next token", () => {
  test("is asked of the kernel, and a refusal is said", async () => {
    mount();
    const select = one<HTMLSelectElement>(".gl-target");
    select.value = select.options[1].value;
    select.dispatchEvent(new Event("change", { bubbles: true }));
    await settled();
    const [call] = model.calls("attribution");
    expect(call.params).toEqual({ target: 102, position: 1 });
    expect(banner()).toContain("The kernel computes");
    model.reply({ kind: "error", id: call.id, code: "attribution-too-long", message: "The text is too long." });
    await settled();
    expect(banner()).toContain("The text is too long.");
    expect(banner()).not.toContain("The kernel computes");
  });
  test("offers the next tokens of the token shown, at once", () => {
    mount();
    scrub(2);
    expect([...one<HTMLSelectElement>(".gl-target").options].map(({ value }) => value)).toEqual(["", "101"]);
  });
  test("keeps only the sources, those beyond the strongest too, and colours the tokens", () => {
    mount({ attribution: LED });
    expect(block("res.0/0").hasAttribute("data-dim")).toBe(false);
    expect(block("res.1/7").hasAttribute("data-dim")).toBe(true);
    expect(block("res.2/77").getAttribute("data-sign")).toBe("lowers");
    expect(all(".gl-edge")).toHaveLength(2);
    expect(Number(one('[data-token="1"]').style.getPropertyValue("--gl-shade"))).toBe(1);
    expect(one(".gl-leads").textContent).toContain("the 3 strongest of 1,234 effects carry 40 % of their sum");
    one(".gl-lead-clear").click();
    expect(model.calls("attribution")[0].params).toEqual({ target: null, position: 1 });
  });
  test("checks one edge, where it has not been", () => {
    mount({ attribution: LED, selection: { token: 1, feature: "res.2/77" } });
    one(".gl-check-one").click();
    expect(model.calls("check")[0].params).toEqual({ n: 1, feature: "res.2/77", position: 1 });
    click(block("res.0/0"));
    expect(el.querySelector(".gl-check-one")).toBeNull();
    expect(one(".gl-inspect").textContent).toContain("measured +1.90");
  });
});

describe("layers by tokens", () => {
  test("shows a concept, asks once for the values that are not among the strongest, and says them", async () => {
    mount({ view: "grid", selection: { token: 1, feature: "res.1/7" } });
    const [call] = model.calls("concept");
    expect(call.params).toEqual({ feature: "res.1/7" });
    const features = ["res.0/0", "res.1/7", "res.2/2"];
    model.reply({ kind: "value", id: call.id, value: { measure: "strength", features, rows: [[[2, 0.05]], [], []] } });
    await settled();
    expect(model.calls("concept")).toHaveLength(1);
    expect(one("canvas").getAttribute("aria-label")).toContain("3 layers by 3 tokens");
    press(one("canvas"), "ArrowDown");
    expect(one(".gl-grid-said").textContent).toContain("layer 1 (res.1/7)");
  });
  test("shows measures of a kind of site, a missing one without numbers", () => {
    mount({ view: "grid" });
    expect(banner()).toContain("Follow a feature");
    const [measure, kind] = all("select") as HTMLSelectElement[];
    measure.value = "l0";
    measure.dispatchEvent(new Event("change"));
    kind.value = "mlp";
    kind.dispatchEvent(new Event("change"));
    press(one("canvas"), "ArrowDown");
    expect(one(".gl-grid-said").textContent).toContain("layer 1 (mlp.1) at '␣a', position 1: not open");
    expect(model.sent).toEqual([]);
  });
});

test("a saved picture shows all tokens, asks nothing, and can put its attribution aside", () => {
  const state = {
    ...evolutionState({ attribution: LED }),
    facts: { "res.0/0": { promotes: [[" Paris", 3]], suppresses: [] } },
  };
  mountStatic(el, saved(state) as Record<string, unknown>);
  click(block("res.0/0"));
  expect(one(".gl-inspect").textContent).toContain("␣Paris");
  expect(el.querySelector(".gl-open-card")).toBeNull();
  one(".gl-lead-clear").click();
  expect(all("[data-sign]")).toHaveLength(0);
  scrub(2);
  expect(blocks()).toContain("res.2/9");
});

test("an exported picture needs no style sheet", () => {
  mount();
  const made = standalone([one(".gl-plot"), one(".gl-strips")] as never, "a <title>", "#fff");
  const text = decodeURIComponent(svgUrl(made).split(",")[1]);
  expect(text).toContain("a &lt;title&gt;");
  expect(text).not.toContain("class=");
  expect(made.querySelectorAll("svg")).toHaveLength(2);
});

test("2,000 tokens are quick to scrub, and few of them are drawn", () => {
  const tokens = Array.from({ length: 2000 }, (_, i) => token(` word${i}`));
  const sites = Array.from({ length: 54 }, (_, i) => `${["res", "att", "mlp"][i % 3]}.${Math.floor(i / 3)}`);
  const row = sites.map((_, s) =>
    tokens.map((_, t) => Object.fromEntries(Array.from({ length: 8 }, (_, n) => [(t * 7 + n * 97 + s) % 2048, 1 + n]))),
  );
  const layers = wireEvolution({ sites, blocks: row, maxima: {} });
  vi.spyOn(HTMLElement.prototype, "clientWidth", "get").mockReturnValue(900);
  const begun = performance.now();
  mount({ tokens, layers, selection: { token: 1999, feature: null }, names: {} });
  const opened = performance.now();
  for (let at = 0; at < 20; at++) press(one(".gl-scrub-line"), "ArrowLeft");
  const each = (performance.now() - opened) / 20;
  console.log(`2,000 tokens, 54 sites: open ${(opened - begun).toFixed(0)} ms, a scrub ${each.toFixed(1)} ms (jsdom)`);
  expect(one('.gl-scrub [aria-selected="true"]').dataset.token).toBe("1979");
  expect(all(".gl-scrub-token").length).toBeLessThan(200);
  expect(model.sent).toEqual([]);
}, 60_000);
