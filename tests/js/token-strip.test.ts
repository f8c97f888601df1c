import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type TokenStrip, tokenStrip } from "../../js/components/token-strip";
import type { Token } from "../../js/core/token";
import { press, token } from "./fake";

let life: AbortController;
let strip: TokenStrip;
let onHover: ReturnType<typeof vi.fn<(token: number | null) => void>>;
let onSelect: ReturnType<typeof vi.fn<(token: number) => void>>;

const make = (tokens: Token[]) => strip.setTokens(tokens);
const spans = () => [...strip.el.querySelectorAll<HTMLElement>("[role=option]")];
const shade = (i: number) => spans()[i].style.getPropertyValue("--gl-shade");

beforeEach(() => {
  life = new AbortController();
  onHover = vi.fn();
  onSelect = vi.fn();
  strip = tokenStrip({ onHover, onSelect, signal: life.signal });
  document.body.append(strip.el);
});
afterEach(() => {
  life.abort();
  strip.el.remove();
});

describe("drawing", () => {
  test("markup in a token stays text", () => {
    make([token("<img src=x onerror=alert(1)>"), token("</span><b>"), token("&amp;")]);
    expect(spans().map((span) => span.textContent)).toEqual(["<img src=x onerror=alert(1)>", "</span><b>", "&amp;"]);
    expect(strip.el.querySelector("img, b")).toBeNull();
  });
  test("words are a listbox of options, one of which the Tab key reaches", () => {
    make([token("a"), token(" b"), token(" c")]);
    expect(strip.el.getAttribute("role")).toBe("listbox");
    expect(strip.el.getAttribute("aria-label")).toBeTruthy();
    expect(spans().map((span) => span.tabIndex)).toEqual([0, -1, -1]);
  });
  test("lines may break before a word, not inside one", () => {
    make([token("The"), token(" cro"), token("iss"), token("ants")]);
    expect(strip.el.textContent).toBe("The croissants");
  });
  test("a newline is shown and breaks the line", () => {
    make([token("a"), token("\n\n"), token("b")]);
    expect(spans()[1].textContent).toBe("↵↵");
    expect(strip.el.querySelectorAll("br").length).toBe(2);
  });
  test("direction marks cannot reorder the neighbours", () => {
    make([token("\u202eabc")]);
    expect(spans()[0].textContent).toBe("⟨U+202E⟩abc");
  });
  test("tall stacks of marks are clipped", () => {
    make([token("e\u0301"), token("Z\u0335\u0321\u0322\u0316\u0317")]);
    expect(spans().map((span) => span.classList.contains("gl-stack"))).toEqual([false, true]);
  });
});

describe("colour", () => {
  const tokens = [token("<bos>", { special: true }), token("a"), token(" b")];
  test("the first word is coloured, special tokens never are", () => {
    make(tokens);
    strip.colour(Float32Array.of(1, 1, 0));
    expect([shade(0), shade(1), shade(2)]).toEqual(["", "1.000", ""]);
  });
  test("token 0 is coloured when it is a word", () => {
    make([token("a"), token(" b")]);
    strip.colour(Float32Array.of(0.5, 0));
    expect(Number(shade(0))).toBeCloseTo(0.753, 3);
  });
  test("goes again when there is none to show", () => {
    make(tokens);
    strip.colour(Float32Array.of(0, 1, 1));
    strip.colour(null);
    expect([shade(1), shade(2)]).toEqual(["0.000", "0.000"]);
  });
});

describe("pointer and keys", () => {
  beforeEach(() => make([token("a"), token(" b"), token(" c")]));
  test("hovering and leaving", () => {
    spans()[0].dispatchEvent(new Event("pointerover", { bubbles: true }));
    strip.el.dispatchEvent(new Event("pointerleave"));
    expect(onHover.mock.calls).toEqual([[0], [null]]);
  });
  test("a click chooses, token 0 too", () => {
    spans()[0].click();
    expect(onSelect).toHaveBeenCalledExactlyOnceWith(0);
  });
  test("the first key shows where the keyboard is, the next ones walk, and stop at the ends", () => {
    const at = () => spans().indexOf(document.activeElement as HTMLElement);
    const walk = (["next", "next", "next", "next", "previous", "first", "previous", "last"] as const).map((where) => {
      strip.move(where);
      return at();
    });
    expect(walk).toEqual([0, 1, 2, 2, 1, 0, 0, 2]);
    expect(spans().map((span) => span.tabIndex)).toEqual([-1, -1, 0]);
  });
  test("up and down go to the nearest token of the next line", () => {
    make([token("a"), token(" b"), token(" c"), token(" d")]);
    const boxes = [
      [0, 0],
      [60, 0],
      [0, 30],
      [50, 30],
    ];
    spans().forEach((span, i) => {
      span.getBoundingClientRect = () => new DOMRect(boxes[i][0], boxes[i][1], 20, 20);
    });
    spans()[1].focus();
    strip.move("down");
    expect(document.activeElement).toBe(spans()[3]);
    strip.move("down");
    expect(document.activeElement).toBe(spans()[3]);
    strip.move("up");
    expect(document.activeElement).toBe(spans()[1]);
  });
  test("listeners end with the view", () => {
    life.abort();
    spans()[0].click();
    press(spans()[0], "Enter");
    expect(onSelect).not.toHaveBeenCalled();
  });
});

test("copying marked tokens gives the text they came from", () => {
  make([token("say"), token(" 🦥".slice(0, 1)), token("", { bytes: "f09fa6a5" }), token("\n"), token("end")]);
  const range = document.createRange();
  range.selectNodeContents(strip.el);
  document.getSelection()?.removeAllRanges();
  document.getSelection()?.addRange(range);
  const setData = vi.fn();
  const event = Object.assign(new Event("copy", { bubbles: true, cancelable: true }), { clipboardData: { setData } });
  spans()[0].dispatchEvent(event);
  expect(setData).toHaveBeenCalledWith("text/plain", "say 🦥\nend");
  expect(event.defaultPrevented).toBe(true);
  document.getSelection()?.removeAllRanges();
});
