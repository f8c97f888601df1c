/** What the views of a text have in common: what they take, what is chosen in them, and how that changes. */

import type { PaletteName } from "../core/colour";
import { type Facts, featureName, NOTHING, parseFeature, type Selection } from "../core/feature";
import type { Fidelity } from "../core/fidelity";
import type { Picture } from "../core/picture";
import type { Value } from "../core/synced";
import type { Banner } from "./banner";
import type { SitePicker } from "./site-picker";

export interface ViewOptions {
  selection: Value<Selection>;
  palette: Value<PaletteName>;
  facts: {
    get(site: string, feature: number): Facts | undefined;
    want(site: string, features: number[], signal: AbortSignal): Promise<void>;
  };
  /** Resolves when the kernel has answered; the picture then changes by itself. */
  openSite(site: string, signal: AbortSignal): Promise<void>;
  /** How well the SAE of the site shown fits; null until it was measured. */
  fidelity: Value<Fidelity | null>;
  /** Asks for `fidelity` of a site, which then changes by itself. */
  measure(site: string, signal: AbortSignal): Promise<void>;
  /** Something about a subject failed; `null` when it works again. */
  onError(subject: string, error: unknown): void;
  signal: AbortSignal;
}

export interface View {
  el: HTMLElement;
  banner: Banner;
  /** A new picture replaces the whole of the last one. */
  show(picture: Picture): void;
}

export interface Choices {
  /** The chosen token, if it is in the picture. */
  token(): number | null;
  /** The chosen feature, if it is of the site that is shown. */
  feature(): number | null;
  /** Chooses a token, or gives it up when it is chosen. */
  pickToken(token: number): void;
  pickFeature(feature: number): void;
  setFeature(feature: number | undefined): void;
  clear(part?: keyof Selection): void;
  pickSite(site: string | undefined, picker: SitePicker): void;
}

export function choices(options: ViewOptions, picture: () => Picture | null): Choices {
  const { selection, openSite, onError, signal } = options;
  let siteWanted = new AbortController();
  const change = (part: Partial<Selection>) => selection.set({ ...selection.get(), ...part });
  const token = () => {
    const { token } = selection.get();
    return token !== null && token < (picture()?.tokens.length ?? 0) ? token : null;
  };
  const feature = () => {
    const parsed = parseFeature(selection.get().feature);
    return parsed && parsed.site === picture()?.site ? parsed.index : null;
  };
  const nameOf = (index: number) => featureName(picture()?.site ?? "", index);
  return {
    token,
    feature,
    pickToken: (picked) => change({ token: picked === token() ? null : picked }),
    pickFeature: (picked) => change({ feature: picked === feature() ? null : nameOf(picked) }),
    setFeature(picked) {
      if (picked !== undefined) change({ feature: nameOf(picked) });
    },
    clear: (part) => selection.set(part ? { ...selection.get(), [part]: null } : { ...NOTHING }),
    pickSite(site, picker) {
      const shown = picture();
      if (!shown?.live || site === undefined || site === shown.site) return;
      siteWanted.abort();
      const request = new AbortController();
      siteWanted = request;
      picker.wait(site);
      onError("site", null);
      openSite(site, AbortSignal.any([request.signal, signal]))
        .catch((error) => onError("site", error))
        .finally(() => siteWanted === request && picker.wait(null));
    },
  };
}
