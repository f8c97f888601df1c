/** Draws a widget in the language its kernel speaks, and again when that changes. */

import { trait } from "../core/synced";
import { ENGLISH, type Messages, speak, type Words, wordsOf } from "../core/words";
import type { RenderProps } from "./_connect";

function readWords(given: unknown): Words {
  const { tag, messages } = (given ?? {}) as { tag?: unknown; messages?: unknown };
  if (typeof tag !== "string" || typeof messages !== "object" || messages === null) return ENGLISH;
  return wordsOf(tag, messages as Messages);
}

export function inLanguage<P extends RenderProps>(render: (props: P) => unknown): (props: P) => unknown {
  return (props) => {
    const { model, el, signal } = props;
    const words = trait(model, "language", readWords);
    let life = new AbortController();
    // All that a view shows lies in its model, so a new view shows what the old one did.
    const draw = () => {
      life.abort();
      life = new AbortController();
      const given = words.get();
      speak(given);
      el.lang = given.language;
      return render({ ...props, signal: AbortSignal.any([signal, life.signal]) });
    };
    words.subscribe(draw, signal);
    return draw();
  };
}
