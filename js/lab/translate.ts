/** JupyterLab's translation service as the source of our words: of the sidebar, of the components in it, of settings. */

import type { ISettingRegistry } from "@jupyterlab/settingregistry";
import { type ITranslator, nullTranslator, type TranslationBundle } from "@jupyterlab/translation";
import { speak } from "../core/words";

export function bundleOf(translator: ITranslator | null): TranslationBundle {
  const from = translator ?? nullTranslator;
  const trans = from.load("gemloupe");
  speak({
    language: from.languageCode,
    find: (one, many, n) => (many === undefined || n === undefined ? trans.__(one) : trans._n(one, many, n)),
  });
  return trans;
}

/**
 * Titles and descriptions of a plugin's settings, before anyone loads them. The server translates settings too, but
 * only those whose words are in JupyterLab's own language pack.
 */
export function translateSettings(registry: ISettingRegistry, id: string, trans: TranslationBundle): void {
  if (!registry.transform) return;
  const said = <T extends { title?: string; description?: string }>(part: T): T => ({
    ...part,
    ...(part.title && { title: trans.__(part.title) }),
    ...(part.description && { description: trans.__(part.description) }),
  });
  registry.transform(id, {
    fetch(plugin) {
      const properties = Object.entries(plugin.schema.properties ?? {}).map(([name, part]) => [name, said(part)]);
      return { ...plugin, schema: { ...said(plugin.schema), properties: Object.fromEntries(properties) } };
    },
  });
}
