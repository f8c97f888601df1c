/** Keys inside a widget. */

import { on } from "./dom";

const TYPING = "input, select, textarea, [contenteditable]";

/** Whether a key event is for a text field or a choice, which have their own use for letters and arrows. */
function typing(event: KeyboardEvent): boolean {
  const [target] = event.composedPath();
  return target instanceof Element && target.matches(TYPING);
}

/**
 * Runs `actions[event.key]` for plain keys pressed inside `root`.
 *
 * JupyterLab listens on the document while the event is still on its way down, and its j and k move between cells.
 * It leaves alone what lies in an element with `data-lm-suppress-shortcuts`; that is set for our own keys only, so
 * that Ctrl+S still saves.
 */
export function keys(root: HTMLElement, actions: Record<string, () => void>, signal: AbortSignal): void {
  const plain = (event: KeyboardEvent) => !(event.ctrlKey || event.metaKey || event.altKey || event.shiftKey);
  const action = (event: KeyboardEvent) =>
    plain(event) && !typing(event) && Object.hasOwn(actions, event.key) ? actions[event.key] : undefined;
  /** Enter and Space belong to what has the focus: a token, a row, a button. */
  const ours = (event: KeyboardEvent) =>
    typing(event) || action(event) !== undefined || (plain(event) && (event.key === "Enter" || event.key === " "));
  globalThis.addEventListener(
    "keydown",
    (event) => {
      if (!event.composedPath().includes(root)) return;
      root.toggleAttribute("data-lm-suppress-shortcuts", ours(event));
    },
    { capture: true, signal },
  );
  on(
    root,
    "keydown",
    (event) => {
      const run = action(event);
      if (!run || event.defaultPrevented) return;
      event.preventDefault();
      event.stopPropagation();
      run();
    },
    signal,
  );
}
