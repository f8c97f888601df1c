/** Elements from data. Data only ever becomes text or an attribute, never markup. */

export interface Props {
  class?: string;
  text?: string;
  attrs?: Record<string, string | number | boolean | undefined>;
}

export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const el = document.createElement(tag);
  if (props.class) el.className = props.class;
  if (props.text !== undefined) el.textContent = props.text;
  for (const [name, value] of Object.entries(props.attrs ?? {}))
    if (value !== undefined && value !== false) el.setAttribute(name, value === true ? "" : String(value));
  el.append(...children);
  return el;
}

/** Listens until `signal` aborts. */
export function on<K extends keyof GlobalEventHandlersEventMap>(
  el: Element,
  name: K,
  listener: (event: GlobalEventHandlersEventMap[K]) => void,
  signal: AbortSignal,
): void {
  el.addEventListener(name, listener as EventListener, { signal });
}

/** Once `signal` aborts. */
export function atEnd(signal: AbortSignal, then: () => void): void {
  signal.addEventListener("abort", then, { once: true });
}

/** Calls when the size of `el` changes, where the browser can tell. */
export function onResize(el: Element, changed: () => void, signal: AbortSignal): void {
  if (typeof ResizeObserver === "undefined") return;
  const observer = new ResizeObserver(changed);
  observer.observe(el);
  atEnd(signal, () => observer.disconnect());
}

let ids = 0;

/** An id for aria references, unique among the widgets of a page. */
export function freshId(name: string): string {
  return `gl-${name}-${++ids}-${Math.floor(Math.random() * 1e9).toString(36)}`;
}

/** The number in a data attribute of the closest ancestor that has it; null where none has. */
export function closestNumber(target: EventTarget | null, name: string): number | null {
  const value = target instanceof Element ? target.closest(`[data-${name}]`)?.getAttribute(`data-${name}`) : null;
  return value === null || value === undefined ? null : Number(value);
}
