/** A picture as a file: SVG with its styles written into it, or PNG at twice its size. */

import { t } from "../core/words";
import { h, on } from "./dom";
import { svg } from "./svg";

const KEPT = [
  "fill",
  "fill-opacity",
  "stroke",
  "stroke-opacity",
  "stroke-width",
  "stroke-dasharray",
  "stroke-linecap",
  "stroke-linejoin",
  "paint-order",
  "opacity",
  "font-family",
  "font-size",
  "font-weight",
  "text-anchor",
];
const MARGIN = 12;

/** Several SVG elements below one another as one that needs no style sheet, on the colour behind them. */
export function standalone(parts: SVGElement[], title: string, paper: string): SVGElement {
  const sizes = parts.map((part) => [Number(part.getAttribute("width")), Number(part.getAttribute("height"))]);
  const width = Math.max(...sizes.map(([one]) => one), 1) + 2 * MARGIN;
  const height = sizes.reduce((sum, [, one]) => sum + one, 0) + 2 * MARGIN + 20;
  const whole = svg("svg", { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}` });
  const style = getComputedStyle(parts[0]);
  const font = { "font-family": style.fontFamily || "sans-serif", "font-size": 12, fill: style.color || "#111" };
  whole.append(svg("title", {}, title), svg("rect", { width, height, fill: paper }));
  whole.append(svg("text", { x: MARGIN, y: MARGIN + 8, ...font }, title));
  let y = MARGIN + 20;
  parts.forEach((part, i) => {
    const copy = part.cloneNode(true) as SVGElement;
    const [from, to] = [
      [part, ...part.querySelectorAll("*")],
      [copy, ...copy.querySelectorAll("*")],
    ];
    from.forEach((one, n) => {
      const said = getComputedStyle(one);
      for (const name of KEPT) {
        const value = said.getPropertyValue(name);
        if (value) to[n].setAttribute(name, value);
      }
      for (const name of ["class", "tabindex", "style"]) to[n].removeAttribute(name);
    });
    copy.setAttribute("x", String(MARGIN));
    copy.setAttribute("y", String(y));
    copy.setAttribute("color", style.color);
    whole.append(copy);
    y += sizes[i][1];
  });
  return whole;
}

/** Hands the browser a file. */
export function download(name: string, url: string): void {
  const link = h("a", { attrs: { href: url, download: name } });
  link.click();
}

export function svgUrl(picture: SVGElement): string {
  return `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(picture))}`;
}

export async function pngUrl(picture: SVGElement): Promise<string> {
  const image = new Image();
  image.src = svgUrl(picture);
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width * 2, image.height * 2];
  canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

/** Buttons that save what `take` gives; `name` is the file's, without ending. */
export function saveButtons(
  take: () => { picture: SVGElement; name: string } | null,
  onError: (error: unknown) => void,
  signal: AbortSignal,
): HTMLElement {
  const button = (kind: "SVG" | "PNG") => {
    const one = h("button", {
      class: "gl-save",
      text: kind,
      attrs: {
        type: "button",
        title: t("Save the picture as {kind}", { kind }),
        "aria-label": t("Save the picture as {kind}", { kind }),
      },
    });
    on(
      one,
      "click",
      async () => {
        try {
          const taken = take();
          if (!taken) return;
          const url = kind === "SVG" ? svgUrl(taken.picture) : await pngUrl(taken.picture);
          download(`${taken.name}.${kind.toLowerCase()}`, url);
          onError(null);
        } catch (error) {
          onError(error);
        }
      },
      signal,
    );
    return one;
  };
  return h(
    "span",
    { class: "gl-saves", attrs: { role: "group", "aria-label": t("Save") } },
    button("SVG"),
    button("PNG"),
  );
}
