/** Other features as links: how near they are, and what they are about. */

import type { Name } from "../core/card";
import { bar } from "./bar";
import { h } from "./dom";
import { chip } from "./text";
import "./feature-links.css";

export interface FeatureLinks {
  el: HTMLElement;
  /** `weight` is drawn as a bar, from 0 to 1, and written by `said`. */
  show(rows: [feature: string, weight: number, hint: string][], names: Record<string, Name>): void;
}

export function featureLinks(
  title: string,
  onGo: (feature: string) => void,
  live: boolean,
  signal: AbortSignal,
): FeatureLinks {
  const el = h("div", { class: "gl-links", attrs: { role: "list", "aria-label": title } });
  const links = () => [...el.querySelectorAll<HTMLElement>(".gl-link")];
  el.addEventListener(
    "click",
    (event) => {
      const link = event.target instanceof Element ? event.target.closest<HTMLElement>(".gl-link") : null;
      if (live && link?.dataset.feature) onGo(link.dataset.feature);
    },
    { signal },
  );
  el.addEventListener(
    "keydown",
    (event) => {
      const all = links();
      const here = all.indexOf(event.target as HTMLElement);
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (here < 0 || by === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      const next = all[Math.min(Math.max(here + by, 0), all.length - 1)];
      for (const link of all) link.tabIndex = link === next ? 0 : -1;
      next.focus();
    },
    { signal },
  );
  return {
    el,
    show(rows, names) {
      const focused = links().find((link) => link.matches(":focus"))?.dataset.feature;
      el.replaceChildren(
        ...rows.map(([feature, weight, hint], i) => {
          const name = names[feature];
          const about = h("span", { class: "gl-link-about" });
          if (name?.label && name.source !== "automatic")
            about.append(h("span", { text: name.label, attrs: { dir: "auto" } }));
          else if (name?.label)
            about.append(h("span", { class: "gl-quiet", text: name.label, attrs: { dir: "auto" } }));
          else about.append(...(name?.promotes ?? []).map((text) => chip(text)));
          const link = h(
            "button",
            {
              class: "gl-link",
              attrs: {
                type: "button",
                "data-feature": feature,
                tabindex: i === 0 ? 0 : -1,
                title: [hint, name?.label].filter(Boolean).join(" · "),
                disabled: !live,
              },
            },
            h("span", { class: "gl-link-name gl-number", text: feature }),
            bar("strength", Math.abs(weight)),
            h("span", { class: "gl-number gl-link-weight", text: weight.toFixed(2) }),
            about,
          );
          return h("div", { attrs: { role: "listitem" } }, link);
        }),
      );
      links()
        .find((link) => link.dataset.feature === focused)
        ?.focus({ preventScroll: true });
    },
  };
}
