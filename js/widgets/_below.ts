/** A widget that a model names, shown under another's view: a desk or a card under search results, a text or a card. */

import type { Banner } from "../components/banner";
import type { Below } from "../components/below";
import type { Model } from "../core/model";
import { trait } from "../core/synced";
import { t } from "../core/words";

/** What anywidget gives a widget to show another one inside. */
export interface Host {
  getWidget(ref: string): Promise<{ render(props: { el: HTMLElement; signal: AbortSignal }): Promise<unknown> }>;
}

/** Keeps the widget that the model names in `name` shown under a view. */
export function showBelow(
  model: Model,
  name: string,
  host: Host,
  view: { banner: Banner; below: Below },
  signal: AbortSignal,
): void {
  const { banner, below } = view;
  let life = new AbortController();
  const show = async () => {
    life.abort();
    const mine = new AbortController();
    life = mine;
    below.place.replaceChildren();
    const ref = model.get(name);
    below.opened(typeof ref === "string");
    if (typeof ref !== "string") return;
    try {
      const other = await host.getWidget(ref);
      if (mine.signal.aborted) return;
      await other.render({ el: below.place, signal: AbortSignal.any([mine.signal, signal]) });
      banner.say("below", null);
    } catch (error) {
      if (mine.signal.aborted || signal.aborted) return;
      below.opened(false);
      banner.say(
        "below",
        t("What should open below cannot be shown here: {error}", { error: (error as Error).message }),
      );
    }
  };
  trait(model, name, () => undefined).subscribe(show, signal);
  show();
}
