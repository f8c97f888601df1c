import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { sentence } from "../../js/components/text";
import { ENGLISH, mark, speak, spoken, t, tn, wordsOf } from "../../js/core/words";
import table from "../../js/widgets/feature-table";
import { FakeModel, sampleState, settled } from "./fake";

const CHINESE = wordsOf("zh-CN", {
  "raw {raw}": ["原始值 {raw}"],
  "{n} feature": ["{n} 个特征"],
  "after {token}, at {position}": ["位置 {position}，{token} 之后"],
  "filter: number or text": ["筛选：编号或文本"],
  feature: ["特征"],
});

afterEach(() => speak(ENGLISH));

describe("words", () => {
  test("are English, with values put in, where there is no other language", () => {
    expect(t("raw {raw}", { raw: 1.5 })).toBe("raw 1.5");
    expect(tn("{n} feature", "{n} features", 1)).toBe("1 feature");
    expect(tn("{n} feature", "{n} features", 0)).toBe("0 features");
    expect(spoken()).toBe("en");
  });
  test("come from the messages, with one form for all numbers", () => {
    speak(CHINESE);
    expect(t("raw {raw}", { raw: 0 })).toBe("原始值 0");
    expect([0, 1, 2].map((n) => tn("{n} feature", "{n} features", n))).toEqual(["0 个特征", "1 个特征", "2 个特征"]);
    expect(spoken()).toBe("zh-CN");
  });
  test("that are missing, or empty, are English", () => {
    speak(wordsOf("zh-CN", { empty: [""], none: [] }));
    expect([t("empty"), t("none"), t("other")]).toEqual(["empty", "none", "other"]);
  });
  test("in a constant are translated where they are shown", () => {
    const name = mark("feature");
    speak(CHINESE);
    expect(t(name)).toBe("特征");
  });
  test("keep braces that are in a value, and places without one", () => {
    expect(t("raw {raw}", { raw: "{raw} $& $1" })).toBe("raw {raw} $& $1");
    expect(t("at {token}")).toBe("at {token}");
  });
  test("of a sentence stand around its elements in the language's own order", () => {
    const chip = document.createElement("b");
    chip.textContent = "x";
    const said = () => {
      const el = document.createElement("div");
      el.append(...sentence(t("after {token}, at {position}", { position: 3 }), { token: chip }));
      return el.innerHTML;
    };
    expect(said()).toBe("after <b>x</b>, at 3");
    speak(CHINESE);
    expect(said()).toBe("位置 3，<b>x</b> 之后");
  });
});

describe("a widget", () => {
  let el: HTMLElement;
  const life = () => new AbortController();
  const filter = () => el.querySelector<HTMLInputElement>("input");
  const zh = { tag: "zh-CN", messages: { "filter: number or text": ["筛选：编号或文本"] } };
  beforeEach(() => {
    el = document.createElement("div");
    document.body.append(el);
  });
  afterEach(() => el.remove());

  test("speaks its kernel's language, and says which it is", async () => {
    const end = life();
    table.render({ model: new FakeModel({ ...sampleState(), language: zh }), el, signal: end.signal });
    await settled();
    expect(filter()?.placeholder).toBe("筛选：编号或文本");
    expect(el.lang).toBe("zh-CN");
    end.abort();
    expect(el.querySelector(".gl-root")).toBeNull();
  });
  test("is drawn anew when that changes, and once", async () => {
    const model = new FakeModel(sampleState());
    const end = life();
    table.render({ model, el, signal: end.signal });
    model.set("selection", { token: 2, feature: null });
    for (const [given, words] of [
      [zh, "筛选：编号或文本"],
      [null, "filter: number or text"],
      ["nonsense", "filter: number or text"],
    ] as const) {
      model.set("language", given);
      await settled();
      expect(filter()?.placeholder).toBe(words);
      expect(el.querySelectorAll(".gl-root")).toHaveLength(1);
    }
    expect(model.get("selection")).toEqual({ token: 2, feature: null });
    end.abort();
    expect(el.children).toHaveLength(0);
    expect(model.listenerCount()).toBe(0);
  });
});
