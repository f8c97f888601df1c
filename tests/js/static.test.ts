import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { mountHere } from "../../js/widgets/_static";
import table from "../../js/widgets/feature-table";
import heatmap, { mountStatic } from "../../js/widgets/token-heatmap";
import { press, sampleState, settled } from "./fake";

let el: HTMLElement;
const one = (selector: string) => el.querySelector<HTMLElement>(selector) as HTMLElement;
const FACTS = { density: 0.01, maximum: 10, mean: 2, promotes: [[" Paris", 3]], suppresses: [] };

/** As the kernel writes it into a page. */
function saved(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(saved);
  if (typeof value !== "object" || value === null) return value;
  if ("data" in value) {
    const { data, ...rest } = value as { data: DataView };
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    return { ...rest, base64: btoa(String.fromCharCode(...bytes)) };
  }
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, saved(part)]));
}
const state = () => JSON.parse(JSON.stringify(saved({ ...sampleState(), facts: { "0": FACTS } })));

beforeEach(() => {
  el = document.createElement("div");
  document.body.append(el);
});
afterEach(() => el.remove());

describe("the static twin", () => {
  test("shows the saved state and its facts, and lets one choose", async () => {
    mountStatic(el, { ...state(), selection: { token: 2, feature: null } });
    await settled();
    expect(one('[data-token="2"]').getAttribute("aria-selected")).toBe("true");
    expect(one('.gl-row[data-feature="0"]').textContent).toContain("␣Paris");
    one('.gl-row[data-feature="0"]').click();
    expect(Number(one('[data-token="2"]').style.getPropertyValue("--gl-shade"))).toBeGreaterThan(0.9);
  });
  test("offers no other sites and complains about no kernel", async () => {
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval", "performance"] });
    mountStatic(el, state());
    expect((one("select") as HTMLSelectElement).disabled).toBe(true);
    press(one('[data-token="1"]'), "[");
    await vi.advanceTimersByTimeAsync(60_000);
    expect(el.querySelector(".gl-banner")).toBeNull();
    vi.useRealTimers();
  });
  test.each([
    ["heatmap", heatmap],
    ["table", table],
  ])("the %s takes the place of the plain picture, around its script", (_name, widget) => {
    const box = document.createElement("div");
    box.dataset.gemloupeStatic = "x";
    const picture = document.createElement("div");
    picture.dataset.gemloupePicture = "";
    const data = document.createElement("script");
    data.type = "application/json";
    data.textContent = JSON.stringify(state()).replaceAll("<", "\\u003c");
    const script = document.createElement("script");
    box.append(picture, data, script);
    el.append(box);
    vi.spyOn(document, "currentScript", "get").mockReturnValue(script);
    mountHere(widget.render);
    expect(picture.isConnected).toBe(false);
    expect(box.querySelector(".gl-root")).not.toBeNull();
  });
  test("a state that cannot be read leaves the picture", () => {
    vi.spyOn(document, "currentScript", "get").mockReturnValue(null);
    expect(() => mountHere(heatmap.render)).not.toThrow();
  });
});
