/** A text with its features, for any host of anywidgets. */

import { heatmap } from "../components/heatmap";
import { type Host, showBelow } from "./_below";
import { connect, isLive, keepShown, type RenderProps } from "./_connect";
import { inLanguage } from "./_language";
import { mount } from "./_static";

function draw(props: RenderProps & { host?: Host }): void {
  const { model, signal, host } = props;
  const connection = connect(model, () => view.banner, signal);
  const { rpc } = connection;
  const card = {
    open: (feature: string) => rpc.call("card", { feature }, { signal }),
    close: () => rpc.call("uncard", {}, { signal }),
  };
  const view: ReturnType<typeof heatmap> = heatmap({ ...connection, card });
  keepShown(props, view, rpc);
  if (host && isLive(model)) showBelow(model, "below", host, view, signal);
}

const render = inLanguage(draw);

export function mountStatic(el: HTMLElement, state: Record<string, unknown>): void {
  mount(render, el, state);
}

export default { render };
