/** Two cards side by side, for any host of anywidgets. */

import { type Side, sideBySide } from "../components/side-by-side";
import { t } from "../core/words";
import type { Host } from "./_below";
import type { RenderProps } from "./_connect";
import { inLanguage } from "./_language";

const SIDES: Side[] = ["left", "right"];

async function draw({ model, el, signal, host }: RenderProps & { host?: Host }): Promise<void> {
  const view = sideBySide();
  el.append(view.el);
  signal.addEventListener("abort", () => view.el.remove(), { once: true });
  await Promise.all(
    SIDES.map(async (side) => {
      const ref = model.get(side);
      try {
        if (typeof ref !== "string" || !host) throw new Error("the card is gone");
        const card = await host.getWidget(ref);
        if (!signal.aborted) await card.render({ el: view[side], signal });
      } catch (error) {
        if (!signal.aborted)
          view[side].textContent = t("A card cannot be shown here: {error}", { error: (error as Error).message });
      }
    }),
  );
}

const render = inLanguage(draw);

export default { render };
