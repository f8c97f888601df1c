/** What the user can set; the schema is schema/plugin.json. */

import type { ISettingRegistry } from "@jupyterlab/settingregistry";
import type { Choices } from "./panel";

export interface Settings extends Choices {
  showLauncherCard: boolean;
  side: "left" | "right";
}

export function readSettings(given: Record<string, unknown> = {}): Settings {
  return {
    showLauncherCard: given.showLauncherCard !== false,
    side: given.side === "right" ? "right" : "left",
    model: typeof given.model === "string" ? given.model : "",
    openAtOnce: given.openAtOnce === true,
    layersInTab: given.layersInTab !== false,
  };
}

/** Calls `use` with the settings as they are now, and after each change. */
export async function followSettings(
  registry: ISettingRegistry | null,
  id: string,
  use: (settings: Settings) => void,
): Promise<void> {
  const settings = await registry?.load(id).catch((error) => {
    console.error("gemloupe: settings could not be read", error);
    return null;
  });
  const look = () => use(readSettings(settings?.composite as Record<string, unknown> | undefined));
  settings?.changed.connect(look);
  look();
}
