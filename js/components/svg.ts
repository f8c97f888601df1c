/** SVG elements from data; data only ever becomes text or an attribute. */

const SVG = "http://www.w3.org/2000/svg";

export type SvgAttrs = Record<string, string | number | undefined>;

export function svg(tag: string, attrs: SvgAttrs = {}, ...children: (Node | string)[]): SVGElement {
  const el = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attrs)) if (value !== undefined) el.setAttribute(name, String(value));
  el.append(...children);
  return el;
}

/**
 * Draws rows of attributes as elements of one tag, which are used again: what changes from one drawing to the next is a
 * few attributes of each, and a page with many style rules pays for every new element.
 */
export function recycled(parent: SVGElement, tag: string): (rows: SvgAttrs[]) => SVGElement[] {
  const pool: { el: SVGElement; last: SvgAttrs }[] = [];
  let used = 0;
  return (rows) => {
    rows.forEach((row, i) => {
      pool[i] ??= { el: svg(tag), last: {} };
      const { el, last } = pool[i];
      for (const name of Object.keys(row)) {
        const value = row[name];
        if (value === last[name]) continue;
        if (value === undefined) el.removeAttribute(name);
        else el.setAttribute(name, String(value));
      }
      pool[i].last = row;
      if (i >= used) parent.append(el);
    });
    for (let i = rows.length; i < used; i++) pool[i].el.remove();
    used = rows.length;
    return pool.slice(0, used).map(({ el }) => el);
  };
}
