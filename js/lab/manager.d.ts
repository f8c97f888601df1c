/** What is used of JupyterLab's widget manager, which the page shares with every extension. */
declare module "@jupyter-widgets/jupyterlab-manager" {
  export function registerWidgetManager(
    context: unknown,
    rendermime: unknown,
    renderers: IterableIterator<unknown>,
  ): { dispose(): void };
}
