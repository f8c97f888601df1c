/** Lines above a view that say what is wrong; one per subject. */

import { h } from "./dom";
import "./banner.css";

export interface Banner {
  el: HTMLElement;
  /** Shows a line about a subject, or takes it away with `null`. */
  say(subject: string, text: string | null, tone?: "warning" | "quiet"): void;
}

export function banner(): Banner {
  const el = h("div", { class: "gl-banners", attrs: { role: "status", "aria-live": "polite" } });
  const lines = new Map<string, HTMLElement>();
  return {
    el,
    say(subject, text, tone = "warning") {
      if (text === null) {
        lines.get(subject)?.remove();
        lines.delete(subject);
        return;
      }
      const line = lines.get(subject) ?? h("div");
      line.className = `gl-banner gl-banner-${tone}`;
      if (line.textContent !== text) line.textContent = text;
      lines.set(subject, line);
      if (!line.isConnected || line.parentNode !== el) el.append(line);
    },
  };
}
