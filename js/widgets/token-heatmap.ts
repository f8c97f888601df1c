/** A text with its features, for any host of anywidgets. */

import { heatmap } from "../components/heatmap";
import type { View } from "../components/view";
import { connect, keepShown, type RenderProps } from "./_connect";
import { mount } from "./_static";

function render(props: RenderProps): void {
  const { model, signal } = props;
  const connection = connect(model, () => view.banner, signal);
  const view: View = heatmap(connection);
  keepShown(props, view, connection.rpc);
}

export function mountStatic(el: HTMLElement, state: Record<string, unknown>): void {
  mount(render, el, state);
}

export default { render };
