/** Opens the tour: the notebook to start with. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from "@jupyterlab/application";
import { ICommandPalette, Notification } from "@jupyterlab/apputils";
import { ILauncher } from "@jupyterlab/launcher";
import { ISettingRegistry } from "@jupyterlab/settingregistry";
import { ITranslator } from "@jupyterlab/translation";
import { gemloupeIcon } from "./icon";
import { bundleOf, translateSettings } from "./translate";

export const OPEN_TOUR = "gemloupe:open-tour";
const ID = "gemloupe:plugin";
const CATEGORY = "Gemloupe";
/** Where the tour may lie, below the folder the server was started in. */
const PLACES = ["notebooks/tour.ipynb", "tour.ipynb"];

async function findTour(app: JupyterFrontEnd): Promise<string | undefined> {
  for (const path of PLACES) {
    const found = await app.serviceManager.contents.get(path, { content: false }).catch(() => null);
    if (found) return path;
  }
  return undefined;
}

function keepLauncherCard(launcher: ILauncher, settings: ISettingRegistry.ISettings | null): void {
  let card: { dispose(): void } | null = null;
  const follow = () => {
    const wanted = settings?.composite.showLauncherCard !== false;
    if (wanted) card ??= launcher.add({ command: OPEN_TOUR, category: CATEGORY, rank: 1 });
    else {
      card?.dispose();
      card = null;
    }
  };
  settings?.changed.connect(follow);
  follow();
}

export const tour: JupyterFrontEndPlugin<void> = {
  id: ID,
  description: "Opens the tour of gemloupe.",
  autoStart: true,
  optional: [ICommandPalette, ILauncher, ISettingRegistry, ITranslator],
  activate: async (
    app: JupyterFrontEnd,
    palette: ICommandPalette | null,
    launcher: ILauncher | null,
    registry: ISettingRegistry | null,
    translator: ITranslator | null,
  ) => {
    const trans = bundleOf(translator);
    if (registry) translateSettings(registry, ID, trans);
    app.commands.addCommand(OPEN_TOUR, {
      label: (args) => (args.isPalette ? trans.__("Gemloupe: open the tour") : trans.__("Tour")),
      caption: trans.__("Open the tour of gemloupe"),
      icon: gemloupeIcon,
      execute: async () => {
        const path = await findTour(app);
        if (path !== undefined) return app.commands.execute("docmanager:open", { path });
        // JupyterLab cuts a notification off after 140 characters.
        Notification.warning(
          trans.__(
            "No tour here: %1 is missing. Start JupyterLab in the gemloupe folder, or copy its notebooks here.",
            PLACES[0],
          ),
          { autoClose: false },
        );
        return undefined;
      },
    });
    palette?.addItem({ command: OPEN_TOUR, category: CATEGORY, args: { isPalette: true } });
    if (!launcher) return;
    const settings = registry
      ? await registry.load(ID).catch((error) => {
          console.error("gemloupe: settings could not be read", error);
          return null;
        })
      : null;
    keepLauncherCard(launcher, settings);
  },
};
