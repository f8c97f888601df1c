/** The tour: the notebook to start with. It comes with the extension, so that it opens in any folder. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from "@jupyterlab/application";
import { ICommandPalette, Notification } from "@jupyterlab/apputils";
import { IDefaultFileBrowser } from "@jupyterlab/filebrowser";
import { ILauncher } from "@jupyterlab/launcher";
import type { Contents } from "@jupyterlab/services";
import { ISettingRegistry } from "@jupyterlab/settingregistry";
import { ITranslator } from "@jupyterlab/translation";
import notebook from "../../notebooks/tour.ipynb";
import { gemloupeIcon } from "./icon";
import { CATEGORY, PLUGIN } from "./plugin-id";
import { followSettings } from "./settings";
import { bundleOf, translateSettings } from "./translate";

export const NEW_TOUR = "gemloupe:new-tour";
const NAME = "gemloupe-tour";

/** Writes the tour into a folder under a name that is free there; returns its path. */
async function writeTour(contents: Contents.IManager, folder: string): Promise<string> {
  const names = new Set(((await contents.get(folder)).content as Contents.IModel[]).map(({ name }) => name));
  let name = `${NAME}.ipynb`;
  for (let i = 2; names.has(name); i++) name = `${NAME}-${i}.ipynb`;
  const path = folder ? `${folder}/${name}` : name;
  await contents.save(path, { type: "notebook", format: "json", content: notebook });
  return path;
}

export const tour: JupyterFrontEndPlugin<void> = {
  id: PLUGIN,
  description: "Makes a notebook with the tour of gemloupe.",
  autoStart: true,
  optional: [ICommandPalette, ILauncher, ISettingRegistry, IDefaultFileBrowser, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    palette: ICommandPalette | null,
    launcher: ILauncher | null,
    registry: ISettingRegistry | null,
    browser: IDefaultFileBrowser | null,
    translator: ITranslator | null,
  ) => {
    const trans = bundleOf(translator);
    if (registry) translateSettings(registry, PLUGIN, trans);
    app.commands.addCommand(NEW_TOUR, {
      label: (args) => {
        if (args.isPalette) return trans.__("Gemloupe: new notebook with the tour");
        return args.isMenu ? trans.__("Gemloupe Tour Notebook") : trans.__("Tour");
      },
      caption: trans.__("A new notebook with the tour of gemloupe"),
      icon: (args) => (args.isPalette ? undefined : gemloupeIcon),
      execute: async (args) => {
        const folder = typeof args.cwd === "string" ? args.cwd : (browser?.model.path ?? "");
        try {
          const path = await writeTour(app.serviceManager.contents, folder);
          return await app.commands.execute("docmanager:open", { path });
        } catch (error) {
          const words = error instanceof Error ? error.message : String(error);
          Notification.error(trans.__("The tour could not be written here: %1", words).slice(0, 140));
          return undefined;
        }
      },
    });
    palette?.addItem({ command: NEW_TOUR, category: CATEGORY, args: { isPalette: true } });
    let card: { dispose(): void } | null = null;
    void followSettings(registry, PLUGIN, ({ showLauncherCard }) => {
      if (showLauncherCard) card ??= launcher?.add({ command: NEW_TOUR, category: CATEGORY, rank: 1 }) ?? null;
      else {
        card?.dispose();
        card = null;
      }
    });
  },
};
