import { afterEach, describe, expect, test } from "vitest";
import { drawing, unrolled, wholeOf } from "../../js/lab/picture";

afterEach(() => document.head.replaceChildren());

function drawn(html: string): Document {
  document.body.innerHTML = `<div class="gl-root">${html}</div>`;
  const root = document.body.firstElementChild as HTMLElement;
  for (const field of root.querySelectorAll("textarea")) field.value = "typed";
  for (const field of root.querySelectorAll("input")) field.value = "0.5";
  for (const list of root.querySelectorAll("select")) list.value = "res.0";
  const picture = new DOMParser().parseFromString(drawing(root, 320, 200), "image/svg+xml");
  expect(picture.querySelector("parsererror")).toBeNull();
  return picture;
}

function sized(node: Element, width: number, height: number, inside: [number, number]): void {
  const sizes = { clientWidth: width, clientHeight: height, offsetWidth: width, offsetHeight: height };
  for (const [name, value] of Object.entries({ ...sizes, scrollWidth: inside[0], scrollHeight: inside[1] }))
    Object.defineProperty(node, name, { value, configurable: true });
}

describe("a picture of a view", () => {
  test("is of all that one scrolls to, and the view is left as it was", () => {
    document.body.innerHTML =
      '<div class="gl-root"><div style="overflow-x: auto; overflow-y: auto; max-height: 90px"><p>all</p></div></div>';
    const root = document.body.firstElementChild as HTMLElement;
    const box = root.firstElementChild as HTMLElement;
    sized(root, 200, 100, [200, 100]);
    sized(box, 180, 90, [700, 400]);
    box.scrollTop = 30;
    let heard = 0;
    box.addEventListener("scroll", () => heard++);
    const seen = unrolled(root, () => [root.style.width, box.style.height, box.style.maxHeight, heard]);
    expect(seen).toEqual(["720px", "400px", "none", 1]);
    expect([root.getAttribute("style"), box.getAttribute("style"), box.scrollTop]).toEqual([
      null,
      "overflow-x: auto; overflow-y: auto; max-height: 90px",
      30,
    ]);
    expect(heard).toBe(2);
  });
  test("is of both cards", () => {
    const half = '<div><div class="gl-root"><i class="gl-root"></i></div></div>';
    document.body.innerHTML = `<main><div><section>${half}${half}</section></div></main>`;
    expect(wholeOf(document.body)?.tagName).toBe("SECTION");
    const one = document.body.querySelector<HTMLElement>("section > div") as HTMLElement;
    expect(wholeOf(one)).toBe(one.firstElementChild);
    expect(wholeOf(document.createElement("div"))).toBeNull();
  });
  test("has what was typed and chosen", () => {
    const picture = drawn(
      '<textarea>first</textarea><input type="range"><select><option>res.12</option><option>res.0</option></select>',
    );
    expect(picture.querySelector("textarea")?.textContent).toBe("typed");
    expect(picture.querySelector("input")?.getAttribute("value")).toBe("0.5");
    expect([...picture.querySelectorAll("option")].map((one) => one.hasAttribute("selected"))).toEqual([false, true]);
  });
  test("is of the size asked for", () => {
    const svg = drawn("").documentElement;
    expect([svg.getAttribute("width"), svg.getAttribute("height")]).toEqual(["320", "200"]);
  });
  test("carries our rules and no others", () => {
    const style = document.createElement("style");
    style.textContent = ".gl-token { color: red } .jp-Cell { color: green }";
    document.head.append(style);
    const rules = drawn("").querySelector("style")?.textContent ?? "";
    expect(rules).toContain("gl-token");
    expect(rules).not.toContain("jp-Cell");
  });
  test("can be drawn whatever a token holds", () => {
    const picture = drawn("<i></i>");
    const root = document.body.firstElementChild as HTMLElement;
    root.querySelector("i")?.append("a\u0000\u001b\ud800b<&>🙂");
    const again = new DOMParser().parseFromString(drawing(root, 1, 1), "image/svg+xml");
    expect(picture.querySelector("i")?.textContent).toBe("");
    expect(again.querySelector("parsererror")).toBeNull();
    expect(again.querySelector("i")?.textContent).toBe("ab<&>🙂");
  });
});
