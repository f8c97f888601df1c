/** A feature on one card: what is said of it, where it fires, what it promotes, examples, neighbours, one's own text. */

import {
  type Ablated,
  CONTEXTS,
  type Example,
  type Examples,
  type More,
  type Near,
  peakOf,
  type Reading,
  type Said,
  type Shown,
} from "../core/card";
import type { PaletteName } from "../core/colour";
import { percentText, rawText, strengthText } from "../core/numbers";
import type { About } from "../core/picture";
import type { Value } from "../core/synced";
import { tokenName } from "../core/text";
import { t } from "../core/words";
import { ablationView } from "./ablation-view";
import { aboutLine } from "./about";
import { type Banner, banner } from "./banner";
import { bar } from "./bar";
import { type Below, below } from "./below";
import { freshId, h } from "./dom";
import { featureLinks } from "./feature-links";
import { histogram } from "./histogram";
import { keys } from "./keys";
import { legend } from "./legend";
import { passages } from "./passages";
import { saidOf } from "./said-of";
import { chip } from "./text";
import { themed } from "./theme";
import { type TokenStrip, tokenStrip } from "./token-strip";
import "./root.css";
import "./feature-card.css";

export interface CardOptions {
  values: {
    about: Value<About>;
    shown: Value<Shown>;
    said: Value<Said>;
    examples: Value<Examples>;
    near: Value<Near | null>;
    more: Value<More>;
    text: Value<string>;
    reading: Value<Reading | null>;
    ablated: Value<Ablated | null>;
    trail: Value<string[]>;
    palette: Value<PaletteName>;
  };
  /** Asks the kernel to do something; rejects with what is wrong. */
  call<T>(method: string, params?: Record<string, unknown>): Promise<T>;
  /** Something about a subject failed; `null` when it works again. */
  onError(subject: string, error: unknown): void;
  /** Whether there is a kernel at all. */
  live: boolean;
  signal: AbortSignal;
}

export interface Card {
  el: HTMLElement;
  banner: Banner;
  /** Where a desk is drawn. */
  below: Below;
}

/** Milliseconds without a key before a text is read. */
const PAUSE = 250;
const LISTED = 8;
const STRIP_KEYS: Record<string, Parameters<TokenStrip["move"]>[0]> = {
  ArrowLeft: "previous",
  ArrowRight: "next",
  ArrowUp: "up",
  ArrowDown: "down",
  Home: "first",
  End: "last",
};
const whole = (value: number) => value.toLocaleString("en");

export function featureCard(options: CardOptions): Card {
  const { values, call, onError, live, signal } = options;
  const tell = (subject: string, method: string, params: Record<string, unknown> = {}) =>
    call(method, params).then(
      () => onError(subject, null),
      (error) => {
        onError(subject, error);
        throw error;
      },
    );
  const quietly = (subject: string, method: string, params: Record<string, unknown> = {}) =>
    void tell(subject, method, params).catch(() => undefined);
  const go = (feature: string) => quietly("go", "go", { feature });
  const button = (text: string, hint: string, run: () => void, more: Record<string, string> = {}) => {
    const el = h("button", { text, attrs: { type: "button", title: hint, "aria-label": hint, ...more } });
    el.addEventListener("click", run, { signal });
    return el;
  };

  // ---- head
  const messages = banner();
  const back = button("←", t("Back"), () => quietly("go", "back"), { class: "gl-card-back" });
  const name = h("span", { class: "gl-card-name gl-number" });
  const star = button("☆", t("Star it"), () => quietly("said", "starred", { value: !values.said.get().starred }));
  star.className = "gl-star";
  const place = h("span", { class: "gl-quiet gl-number" });
  const previous = button("‹", t("Previous feature"), () => quietly("go", "previous"));
  const next = button("›", t("Next feature"), () => quietly("go", "next"));
  const random = button(t("random"), t("Any feature of this site that fires"), () => quietly("go", "random"));
  const field = h("input", {
    class: "gl-go-field",
    attrs: { type: "text", placeholder: t("go to, as res.12/834"), "aria-label": t("Go to a feature"), size: 18 },
  });
  const steer = button(t("steer"), t("Steer with it"), () => quietly("steer", "steer"));
  const page = h("a", { class: "gl-quiet", text: "Neuronpedia", attrs: { target: "_blank", rel: "noreferrer" } });
  field.addEventListener(
    "keydown",
    (event) => {
      const feature = field.value.trim();
      if (event.key !== "Enter" || !feature) return;
      event.preventDefault();
      event.stopPropagation();
      tell("go", "go", { feature }).then(
        () => {
          field.value = "";
        },
        () => field.focus(),
      );
    },
    { signal },
  );
  const moves = h("span", { class: "gl-card-moves" }, previous, next, random, field, steer);
  const head = h("div", { class: "gl-head gl-card-top" }, back, name, star, place, page, moves);

  const said = saidOf({
    label: (value) => tell("said", "label", { value }),
    note: (value) => tell("said", "note", { value }),
    live,
    signal,
  });

  // ---- where it fires
  const missing = h("div", { class: "gl-card-missing" });
  const stats = h("div", { class: "gl-card-stats" });
  const chart = histogram();
  const on = h("div", { class: "gl-card-on" });
  const axis = h("div", {
    class: "gl-quiet gl-card-axis",
    text: t("activation, raw (across) and tokens (up), both logarithmic"),
  });
  const fires = section(t("Where it fires"), missing, stats, chart.el, axis, on);

  // ---- what it promotes
  const promotes = h("div", { class: "gl-weighed", attrs: { role: "list", "aria-label": t("Promoted tokens") } });
  const suppresses = h("div", { class: "gl-weighed", attrs: { role: "list", "aria-label": t("Suppressed tokens") } });
  const tokens = section(
    t("Tokens it promotes and suppresses"),
    h(
      "div",
      { class: "gl-card-tokens" },
      h("div", {}, h("div", { class: "gl-card-sub", text: t("promotes") }), promotes),
      h("div", {}, h("div", { class: "gl-card-sub", text: t("suppresses") }), suppresses),
    ),
  );

  // ---- one's own text
  const box = h("textarea", {
    class: "gl-try",
    attrs: {
      rows: 2,
      dir: "auto",
      spellcheck: "false",
      placeholder: t("Type a text: the feature is read in it as you go."),
    },
  });
  box.id = freshId("try");
  box.readOnly = !live;
  const verdict = h("div", { class: "gl-quiet gl-number gl-try-verdict", attrs: { role: "status" } });
  let hovered: number | null = null;
  const strip = tokenStrip({
    onHover(token) {
      hovered = token;
      drawMarks();
    },
    onSelect: () => undefined,
    signal,
  });
  strip.el.addEventListener(
    "keydown",
    (event) => {
      const where = STRIP_KEYS[event.key];
      if (where === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      strip.move(where);
    },
    { signal },
  );
  const trial = section(t("Try your own text"), box, strip.el, verdict);
  trial.querySelector("h3")?.replaceChildren(h("label", { text: t("Try your own text"), attrs: { for: box.id } }));
  let pause: ReturnType<typeof setTimeout> | undefined;
  signal.addEventListener("abort", () => clearTimeout(pause), { once: true });
  const sendText = () => {
    clearTimeout(pause);
    if (!signal.aborted && box.value !== values.text.get()) values.text.set(box.value);
    drawReading();
  };
  box.addEventListener(
    "input",
    () => {
      clearTimeout(pause);
      pause = setTimeout(sendText, PAUSE);
      drawReading();
    },
    { signal },
  );
  box.addEventListener("change", sendText, { signal });

  // ---- examples
  let by: "strongest" | "interval" = "strongest";
  const tabs = h("div", { class: "gl-tabs", attrs: { role: "tablist", "aria-label": t("Examples") } });
  const kinds = ["strongest", "interval"] as const;
  const tabOf = kinds.map((kind) => {
    const tab = h("button", {
      class: "gl-tab",
      text: kind === "strongest" ? t("strongest") : t("by interval of activation"),
      attrs: { type: "button", role: "tab", "data-by": kind },
    });
    tab.addEventListener("click", () => pick(kind), { signal });
    return tab;
  });
  tabs.append(...tabOf);
  tabs.addEventListener(
    "keydown",
    (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      pick(by === "strongest" ? "interval" : "strongest");
      tabOf[kinds.indexOf(by)].focus();
    },
    { signal },
  );
  const pick = (kind: (typeof kinds)[number]) => {
    by = kind;
    drawExamples();
  };
  const context = h("select", { class: "gl-context", attrs: { "aria-label": t("Tokens around the peak") } });
  for (const sides of CONTEXTS)
    context.append(
      h("option", {
        text: sides === null ? t("whole passage") : t("{n} tokens around", { n: sides }),
        attrs: { value: String(sides) },
      }),
    );
  context.disabled = !live;
  context.addEventListener(
    "change",
    () => quietly("context", "context", { value: context.value === "null" ? null : Number(context.value) }),
    { signal },
  );
  const scale = legend((palette) => values.palette.set(palette), signal);
  const list = passages({
    whole: ({ document, position }) => call<Example>("whole", { document, position }),
    onError: (error) => onError("whole", error),
    live,
    signal,
  });
  const examples = section(t("Examples"), h("div", { class: "gl-head" }, tabs, context, scale.el), list.el);

  // ---- other features
  const own = featureLinks(t("Nearest in its own site"), go, live, signal);
  const others = featureLinks(t("Nearest in other sites"), go, live, signal);
  const together = featureLinks(t("Features that fire together"), go, live, signal);
  const compare = button(t("find them"), t("Reads the decoders of all open sites, which may take a while"), () =>
    quietly("near", "compare"),
  );
  const nearStatus = h("span", { class: "gl-quiet", attrs: { role: "status" } });
  const ownPart = part(t("nearest in its own site (cosine of decoder rows)"), own.el);
  const othersPart = part(t("nearest in other sites"), others.el);
  const togetherPart = part(t("fires together with (share of tokens)"), together.el);
  const family = section(
    t("Other features"),
    h("div", { class: "gl-card-near" }, compare, nearStatus),
    h("div", { class: "gl-card-family" }, h("div", {}, ownPart, togetherPart), othersPart),
  );

  const loss = ablationView(
    () => quietly("ablate", "ablate"),
    () => quietly("ablate", "stop"),
    live,
    signal,
  );
  const ablation = section(t("What the model loses without it"), loss.el);

  const under = below(() => quietly("steer", "unsteer"), signal);

  const about = aboutLine(live ? t("j next · k previous · r random · b back · s steer") : t("saved picture"));
  const root = h(
    "div",
    { class: "gl-root gl-feature-card" },
    head,
    messages.el,
    said.el,
    h("div", { class: "gl-card-columns" }, fires, tokens),
    trial,
    examples,
    family,
    ablation,
    about.el,
    under.el,
  );
  const paint = themed(root, signal);
  // A saved card has nobody to ask.
  star.disabled = back.hidden = moves.hidden = !live;
  const can = (run: () => void) => () => live && run();
  keys(
    root,
    {
      j: can(() => next.click()),
      k: can(() => previous.click()),
      r: can(() => random.click()),
      b: can(() => back.click()),
      s: can(() => steer.click()),
    },
    signal,
  );

  // ---- drawing
  const maximum = () => {
    const { maximum, evidence } = values.shown.get();
    if (maximum !== null && maximum > 0) return maximum;
    return evidence?.maximum || peakOf(values.reading.get()) || 1;
  };
  const reading = () => {
    const one = values.reading.get();
    return one !== null && one.feature === values.shown.get().feature ? one : null;
  };
  const drawMarks = () => {
    const more = values.more.get();
    const one = reading();
    chart.mark({
      threshold: more.feature === values.shown.get().feature ? more.threshold : null,
      text: peakOf(one),
      token: hovered === null ? null : (one?.acts[hovered] ?? null),
    });
  };
  const drawShown = () => {
    const shown = values.shown.get();
    const { evidence } = shown;
    const [site, index] = shown.feature.split("/");
    name.textContent = shown.feature;
    place.textContent = shown.width
      ? t("feature {index} of {width} at {site}", { index, width: whole(shown.width), site })
      : "";
    page.hidden = shown.neuronpedia === null;
    if (shown.neuronpedia?.startsWith("https://")) page.setAttribute("href", shown.neuronpedia);
    const dead = evidence !== null && evidence.fired === 0;
    missing.hidden = evidence !== null && !dead;
    missing.textContent = dead
      ? t(
          "This feature never fires on the {tokens} tokens of the index {index}. It is dead, or rarer than this text shows.",
          { tokens: whole(evidence.tokens), index: evidence.index },
        )
      : shown.why;
    const facts: [string, string][] = [];
    if (shown.density !== null) facts.push([t("density"), percentText(shown.density)]);
    if (shown.maximum !== null) facts.push([t("maximum"), rawText(shown.maximum)]);
    if (evidence && !dead) {
      facts.push([t("mean when on"), rawText(evidence.mean)]);
      facts.push([
        t("fires on"),
        t("{some} of {all} tokens", { some: whole(evidence.fired), all: whole(evidence.tokens) }),
      ]);
      facts.push([t("index"), evidence.index]);
    }
    stats.replaceChildren(
      ...facts.map(([key, value]) =>
        h(
          "span",
          {},
          h("span", { class: "gl-quiet", text: `${key} ` }),
          h("span", { class: "gl-number", text: value }),
        ),
      ),
    );
    chart.show(evidence?.counts ?? [], evidence?.edges ?? [], shown.maximum ?? evidence?.maximum ?? 0);
    axis.hidden = chart.el.hidden;
    on.hidden = !evidence?.on.length;
    on.replaceChildren(
      h("span", { class: "gl-quiet", text: `${t("mostly on")} ` }),
      ...(evidence?.on ?? []).map(([text, count]) =>
        h(
          "span",
          {
            class: "gl-card-counted",
            attrs: { title: t("{n} of {all} firings looked at", { n: count, all: evidence?.looked_at ?? 0 }) },
          },
          chip(text),
          h("span", { class: "gl-quiet gl-number", text: percentText(count / Math.max(evidence?.looked_at ?? 0, 1)) }),
        ),
      ),
    );
    examples.hidden = ablation.hidden = !evidence || dead;
    drawWeighed();
    drawMarks();
    drawReading();
    drawExamples();
    drawFamily();
    drawAblated();
  };
  const drawWeighed = () => {
    const shown = values.shown.get();
    const more = values.more.get();
    const late = more.feature === shown.feature ? more : null;
    for (const [el, key] of [
      [promotes, "promotes"],
      [suppresses, "suppresses"],
    ] as const) {
      const pairs = (shown[key].length ? shown[key] : (late?.[key] ?? [])).slice(0, LISTED);
      const most = Math.max(...pairs.map(([, logit]) => Math.abs(logit ?? 0)), 1e-9);
      el.replaceChildren(
        ...pairs.map(([text, logit]) =>
          h(
            "div",
            {
              attrs: {
                role: "listitem",
                title: logit === null ? undefined : t("logit {value}", { value: `${logit > 0 ? "+" : ""}${logit}` }),
              },
            },
            bar(key === "promotes" ? "strength" : "probability", Math.abs(logit ?? 0) / most),
            chip(text),
          ),
        ),
      );
    }
  };
  const drawReading = () => {
    const one = reading();
    const waits = box.value !== "" && (one === null || one.text !== box.value);
    const readable = one !== null && one.error === null && box.value !== "";
    strip.el.hidden = !readable;
    if (drawn !== one) {
      drawn = one;
      hovered = null;
      strip.setTokens(readable ? one.tokens : []);
      if (readable) {
        const most = maximum();
        strip.colour(Float32Array.from(one.acts, (value) => value / most));
        strip.label((token) =>
          t("{token}, strength {strength}, raw {raw}", {
            token: tokenName(one.tokens[token]),
            strength: strengthText((one.acts[token] ?? 0) / most),
            raw: rawText(one.acts[token] ?? 0),
          }),
        );
        one.tokens.forEach((_, token) => {
          const value = one.acts[token] ?? 0;
          const at = strip.at(token);
          if (at)
            at.title =
              value > 0
                ? t("{strength}, raw {raw}", { strength: strengthText(value / most), raw: rawText(value) })
                : t("off");
        });
      }
      drawMarks();
    }
    root.classList.toggle("gl-card-waits", waits);
    trial.hidden = !live && !readable;
    if (one?.error && !waits) {
      verdict.textContent = one.error;
    } else if (waits) verdict.textContent = live ? t("reading…") : "";
    else if (!readable) verdict.textContent = "";
    else {
      const most = peakOf(one) ?? 0;
      const at = one.tokens[one.acts.indexOf(most)];
      const count = one.acts.filter((value) => value > 0).length;
      const ordinary = one.tokens.filter((token) => !token.special).length;
      verdict.textContent =
        most > 0
          ? t("strongest {strength} (raw {raw}) on “{token}”, on at {count} of {all} tokens", {
              strength: strengthText(most / maximum()),
              raw: rawText(most),
              token: at ? tokenName(at) : "",
              count,
              all: ordinary,
            })
          : t("silent on all {n} tokens", { n: ordinary });
    }
    verdict.classList.toggle("gl-try-error", Boolean(one?.error) && !waits);
  };
  let drawn: Reading | null | undefined;
  /** Which examples the kernel was asked to read the rest of. */
  let filling = "";
  const wantRest = (given: Examples) => {
    const some = by === "strongest" ? given.top : given.intervals.flatMap((one) => one.examples);
    const asked = `${values.shown.get().feature} ${given.context} ${by}`;
    if (!live || asked === filling || !some.some((example) => example.known !== null)) return;
    filling = asked;
    quietly("fill", "fill", { by });
  };
  const drawExamples = () => {
    const given = values.examples.get();
    for (const tab of tabOf) {
      const chosen = tab.dataset.by === by;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
    }
    const value = String(given.context);
    if (![...context.options].some((option) => option.value === value))
      context.append(h("option", { text: t("{n} tokens around", { n: value }), attrs: { value } }));
    context.value = value;
    list.show(given, maximum(), by);
    wantRest(given);
    scale.show("", ["0", rawText(maximum())]);
  };
  const drawFamily = () => {
    const shown = values.shown.get();
    const near = values.near.get();
    const more = values.more.get();
    const names = more.feature === shown.feature ? more.names : {};
    const cosines = (rows: [string, number][] = []) =>
      rows.map(
        ([feature, cosine]) =>
          [feature, cosine, t("cosine {value}", { value: cosine.toFixed(3) })] as [string, number, string],
      );
    own.show(cosines(near?.own), names);
    others.show(cosines(near?.others), names);
    const companions = shown.evidence?.together ?? [];
    together.show(
      companions.map(([feature, share, count]) => [
        feature,
        share,
        t("both on {share} of the tokens where one is (seen together {count} times)", {
          share: percentText(share),
          count: whole(count),
        }),
      ]),
      names,
    );
    const known = near?.state === "known";
    ownPart.hidden = !near?.own.length;
    othersPart.hidden = !near?.others.length;
    togetherPart.hidden = !companions.length;
    compare.hidden = !live || known || near?.state === "running";
    const unknown = live ? t("The nearest features by decoder cosine are not known yet.") : "";
    const states = { running: t("comparing decoder rows…"), failed: near?.error ?? t("failed"), known: "" };
    nearStatus.textContent = near ? states[near.state] : unknown;
    family.hidden = !live && ownPart.hidden && othersPart.hidden && togetherPart.hidden;
  };
  const drawAblated = () => {
    loss.show(values.ablated.get(), Boolean(values.shown.get().evidence?.fired));
    ablation.hidden = !values.shown.get().evidence?.fired || (!live && values.ablated.get() === null);
  };
  const drawSaid = () => {
    const given = values.said.get();
    said.show(given);
    star.textContent = given.starred ? "★" : "☆";
    star.setAttribute("aria-pressed", String(given.starred));
    star.setAttribute("aria-label", given.starred ? t("Starred: take the star away") : t("Star it"));
  };
  const drawText = () => {
    // What is being typed is newer than what the kernel knows.
    if (!box.matches(":focus")) box.value = values.text.get();
    drawReading();
  };
  const drawMore = () => {
    drawWeighed();
    drawMarks();
    drawFamily();
  };
  /** Threshold and names take the kernel a moment, so they are asked for once the card stands. */
  const wantMore = () => {
    if (live && values.more.get().feature !== values.shown.get().feature) quietly("more", "more");
  };

  values.palette.subscribe(paint, signal);
  values.palette.subscribe(scale.setPalette, signal);
  values.shown.subscribe(() => {
    drawShown();
    wantMore();
  }, signal);
  values.said.subscribe(drawSaid, signal);
  values.examples.subscribe(drawExamples, signal);
  values.near.subscribe(drawFamily, signal);
  values.more.subscribe(drawMore, signal);
  values.text.subscribe(drawText, signal);
  values.reading.subscribe(drawReading, signal);
  values.ablated.subscribe(drawAblated, signal);
  values.about.subscribe((given) => about.show(given), signal);
  const drawTrail = () => {
    const trail = values.trail.get();
    back.disabled = !live || !trail.length;
    back.title = trail.length ? t("Back to {feature}", { feature: trail.at(-1) ?? "" }) : t("Back");
  };
  values.trail.subscribe(drawTrail, signal);
  paint(values.palette.get());
  scale.setPalette(values.palette.get());
  box.value = values.text.get();
  about.show(values.about.get());
  drawSaid();
  drawShown();
  drawTrail();
  wantMore();

  return {
    el: root,
    banner: messages,
    below: under,
  };
}

function section(title: string, ...children: HTMLElement[]): HTMLElement {
  return h("section", { class: "gl-card-part" }, h("h3", { class: "gl-part-title", text: title }), ...children);
}

function part(title: string, ...children: HTMLElement[]): HTMLElement {
  return h("div", { class: "gl-card-kin" }, h("div", { class: "gl-card-sub", text: title }), ...children);
}
