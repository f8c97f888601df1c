/** The features of a text as a table, for any host of anywidgets. */

import { table } from "../components/table";
import type { View } from "../components/view";
import { connect, keepShown, type RenderProps } from "./_connect";
import { inLanguage } from "./_language";
import { mount } from "./_static";

function draw(props: RenderProps): void {
  const { model, signal } = props;
  const connection = connect(model, () => view.banner, signal);
  const view: View = table(connection);
  keepShown(props, view, connection.rpc);
}

const render = inLanguage(draw);

export function mountStatic(el: HTMLElement, state: Record<string, unknown>): void {
  mount(render, el, state);
}

export default { render };
