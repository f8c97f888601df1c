/**
 * What a view shows as a PNG: a copy of its elements with our own style rules, drawn by the browser from inside an SVG.
 * Libraries for that copy the computed style of every element instead, which takes seconds under JupyterLab's rules.
 */

import { svg } from "../components/svg";

const SCALE = 2;
/** Pixels across or down, and in all, that a browser's canvas surely holds. */
const LIMIT = 16_000;
const AREA = 1.6e8;
/** Milliseconds and looks until what comes into sight has what it asks the kernel for. */
const PAUSE = 250;
const LOOKS = 8;
const XHTML = "http://www.w3.org/1999/xhtml";
/** Characters that XML does not have. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: those are the ones
const NOT_XML = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])/g;
const INHERITED = ["color", "font-family", "font-size", "font-weight", "line-height", "direction"];

/** All of a view, also what one scrolls to; `cut` says that it is more than a picture holds. */
export async function pngOf(node: HTMLElement): Promise<{ png: Blob; cut: boolean }> {
  let taken = taking(node);
  for (let look = 1, before = ""; look < LOOKS && taken.whole !== before; look++) {
    before = taken.whole;
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    taken = taking(node);
  }
  const { whole, width, height, cut } = taken;
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(whole)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  const scale = Math.min(SCALE, LIMIT / Math.max(width, height), Math.sqrt(AREA / (width * height)));
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
  const made = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!made) throw new Error("the browser could not draw it");
  return { png: made, cut };
}

function taking(node: HTMLElement) {
  return unrolled(node, (cut) => {
    const [width, height] = [node.scrollWidth, node.scrollHeight].map((one) => Math.min(one, LIMIT));
    return { whole: drawing(node, width, height), width, height, cut: cut || node.scrollHeight > LIMIT };
  });
}

const scrolls = (one: Element) => {
  const { overflowX, overflowY } = getComputedStyle(one);
  return !one.matches("textarea, select, .gl-unseen") && /auto|scroll/.test(`${overflowX} ${overflowY}`);
};
/** Pixels of what an element holds that are out of sight, across and down. */
const rest = (one: Element) => [one.scrollWidth - one.clientWidth, one.scrollHeight - one.clientHeight];

/** What holds all that a view shows: two cards are two roots. */
export function wholeOf(node: HTMLElement): HTMLElement | null {
  const roots = node.querySelectorAll(".gl-root");
  const last = roots.item(roots.length - 1);
  let whole = node.matches(".gl-root") ? node : roots.item(0)?.closest<HTMLElement>(".gl-root");
  while (whole && whole !== node && !whole.contains(last)) whole = whole.parentElement;
  return whole ?? null;
}

/**
 * What `take` gives while everything in `node` that scrolls is as large as what it holds. All in one go: the browser
 * paints nothing of it, and what draws only what is in sight hears "scroll" and draws the rest.
 */
export function unrolled<T>(node: HTMLElement, take: (cut: boolean) => T): T {
  const boxes = [...node.querySelectorAll<HTMLElement>("*")].filter(
    (one) => one instanceof HTMLElement && scrolls(one),
  );
  const before = [node, ...boxes].map((one) => {
    return { one, style: one.getAttribute("style"), left: one.scrollLeft, top: one.scrollTop };
  });
  const tell = () => {
    for (const one of boxes) one.dispatchEvent(new Event("scroll"));
  };
  try {
    const wider = Math.max(0, ...boxes.map((one) => rest(one)[0]));
    if (wider) node.style.width = node.style.minWidth = `${Math.min(node.offsetWidth + wider, LIMIT)}px`;
    let cut = false;
    // What is inside another grows first.
    for (const one of boxes.reverse()) {
      if (rest(one)[1] > 0) {
        one.style.maxHeight = "none";
        one.style.height = `${Math.min(one.offsetHeight + rest(one)[1], LIMIT)}px`;
      }
      cut ||= rest(one).some((more) => more > 1);
      one.style.overflow = "hidden"; // without bars
    }
    tell();
    return take(cut);
  } finally {
    for (const { one, style } of before) {
      if (style === null) one.removeAttribute("style");
      else one.setAttribute("style", style);
    }
    for (const { one, left, top } of before) [one.scrollLeft, one.scrollTop] = [left, top];
    tell();
  }
}

/** The view as SVG text. */
export function drawing(node: HTMLElement, width: number, height: number): string {
  const rules = ourRules();
  const around = document.createElement("div");
  const said = getComputedStyle(node);
  for (const name of INHERITED) around.style.setProperty(name, said.getPropertyValue(name));
  for (const [name] of rules.matchAll(/--(?!gl-)[\w-]+/g))
    around.style.setProperty(name, said.getPropertyValue(name).trim());
  around.style.background = paper(node);
  around.style.width = `${width}px`;
  around.style.height = `${height}px`;
  const style = document.createElement("style");
  style.textContent = rules;
  around.append(style, copyOf(node));
  const inside = svg("foreignObject", { width, height });
  inside.append(around);
  const whole = svg("svg", { width, height });
  whole.append(inside);
  return new XMLSerializer().serializeToString(whole).replace(NOT_XML, "");
}

/** A copy that looks like the original: what was typed, chosen, scrolled and painted is written into it. */
function copyOf(node: HTMLElement): HTMLElement {
  const copy = node.cloneNode(true) as HTMLElement;
  const copies = [copy, ...copy.querySelectorAll("*")];
  [node, ...node.querySelectorAll("*")].forEach((one, i) => {
    const two = copies[i];
    if (one instanceof HTMLInputElement) {
      two.setAttribute("value", one.value);
      two.toggleAttribute("checked", one.checked);
    } else if (one instanceof HTMLTextAreaElement) two.textContent = one.value;
    else if (one instanceof HTMLOptionElement) two.toggleAttribute("selected", one.selected);
    else if (one instanceof HTMLCanvasElement) {
      const painted = document.createElementNS(XHTML, "img") as HTMLImageElement;
      painted.src = one.toDataURL();
      for (const { name, value } of one.attributes) painted.setAttribute(name, value);
      two.replaceWith(painted);
    }
    const first = two.firstElementChild;
    if ((one.scrollTop || one.scrollLeft) && (first instanceof HTMLElement || first instanceof SVGElement))
      first.style.setProperty("translate", `${-one.scrollLeft}px ${-one.scrollTop}px`);
  });
  copy.style.margin = "0";
  return copy;
}

/** The style rules of the page that are gemloupe's. */
function ourRules(): string {
  const found: string[] = [];
  for (const sheet of document.styleSheets) {
    try {
      for (const { cssText } of sheet.cssRules) if (/[.\s]gl-/.test(cssText)) found.push(cssText);
    } catch {
      // a sheet of another origin
    }
  }
  return [...new Set(found)].join("\n");
}

function paper(node: Element): string {
  for (let at: Element | null = node; at; at = at.parentElement) {
    const { backgroundColor } = getComputedStyle(at);
    if (backgroundColor && !/^rgba\(.*, 0\)$|^transparent$/.test(backgroundColor)) return backgroundColor;
  }
  return "#ffffff";
}
