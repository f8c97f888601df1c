/** A kernel of the sidebar's own, for when no notebook is open, with a widget manager of its own. */

import { type ISessionContext, SessionContext } from "@jupyterlab/apputils";
import { type IRenderMimeRegistry, RenderMimeRegistry } from "@jupyterlab/rendermime";
import type { ServiceManager } from "@jupyterlab/services";
import { Signal } from "@lumino/signaling";
import type { Place } from "./place";

const PATH = "gemloupe-sidebar";

/** Whether an earlier page of this server left the kernel running. */
export async function isRunning(services: ServiceManager.IManager): Promise<boolean> {
  return (await services.sessions.findByPath(PATH)) !== undefined;
}

/** Starts a Python kernel in a context that has none. */
export async function startPython(context: ISessionContext, services: ServiceManager.IManager): Promise<void> {
  await services.kernelspecs.ready;
  const specs = services.kernelspecs.specs?.kernelspecs ?? {};
  const python = Object.values(specs).find((spec) => spec?.language.toLowerCase() === "python");
  if (!python) throw new Error("no Python kernel is installed on this server");
  await context.changeKernel({ name: python.name });
}

/** Starts the kernel, or connects to the one that an earlier page of this server left running. */
export async function ownKernel(services: ServiceManager.IManager, rendermime: IRenderMimeRegistry): Promise<Place> {
  const context = new SessionContext({
    kernelManager: services.kernels,
    sessionManager: services.sessions,
    specsManager: services.kernelspecs,
    path: PATH,
    name: "Gemloupe",
    type: "gemloupe",
    kernelPreference: { language: "python", autoStartDefault: true, shutdownOnDispose: false },
  });
  try {
    if (await context.initialize()) await startPython(context, services);
  } catch (error) {
    context.dispose();
    throw error;
  }
  const own = new RenderMimeRegistry({ initialFactories: [], sanitizer: rendermime.sanitizer });
  // The widget manager's own entry point for a place that is no notebook; it asks for no more than this of a context.
  const host = {};
  const { registerWidgetManager } = await import("@jupyter-widgets/jupyterlab-manager");
  registerWidgetManager(
    {
      sessionContext: context,
      saveState: new Signal<object, string>(host),
      model: { getMetadata: () => undefined, setMetadata: () => undefined },
      urlResolver: { resolveUrl: async (url: string) => url, getDownloadUrl: async (url: string) => url },
    },
    own,
    [].values(),
  );
  return { name: "", context, rendermime: own, notebook: null };
}
