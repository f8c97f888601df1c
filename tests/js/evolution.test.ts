import { describe, expect, test } from "vitest";
import { edgesAt, effectsByToken, readAttribution } from "../../js/core/attribution";
import { Evolution, readEvolution } from "../../js/core/evolution";
import { frame, layout, neighbour } from "../../js/core/evolution-layout";
import { PLAIN, SPECIAL, wireEvolution, wireGuesses } from "./evolution-fake";
import { array } from "./fake";

const evolution = new Evolution(wireEvolution(PLAIN), SPECIAL, wireGuesses(PLAIN));
const names = (blocks: { name: string }[]) => blocks.map(({ name }) => name);

describe("an evolution", () => {
  test("gives the blocks of a token, in units of each feature's own maximum; feature 0 is one", () => {
    const [zero, three] = evolution.blocks(1, 0);
    expect(zero).toMatchObject({ name: "res.0/0", raw: 4, strength: 0.5, shade: 0.5 });
    expect(three).toMatchObject({ name: "res.0/3", strength: 0.25 });
    expect(evolution.blocks(2, 1)).toEqual([]);
  });
  test("shows no features of a special token, and leaves its values out of every scale", () => {
    expect(evolution.blocks(0, 0)).toEqual([]);
    const [unknown] = evolution.blocks(2, 4);
    expect(unknown).toMatchObject({ name: "mlp.2/6", strength: Number.NaN, shade: 1 });
    expect(evolution.someUnknown).toBe(true);
  });
  test("joins what is the same into chains: what lasts comes first", () => {
    const column = evolution.column(1);
    expect(names(column.chains[0].blocks)).toEqual(["res.0/0", "res.1/7", "res.2/2"]);
    expect(column.chains[0].ribbons.map(({ cosine }) => cosine)).toEqual([Math.fround(0.9), Math.fround(0.8)]);
    expect(column.chainOf.get("res.2/2")).toBe(column.chains[0]);
    // Without its source at this token a chain begins later.
    expect(
      names(evolution.column(2).chains.find(({ blocks }) => blocks[0].name === "res.2/2")?.blocks ?? []),
    ).toHaveLength(1);
  });
  test("never joins across a site that is missing", () => {
    expect(evolution.column(1).chainOf.get("mlp.0/5")?.blocks).toHaveLength(1);
    expect(evolution.trail("mlp.0/5")).toEqual(["mlp.0/5"]);
  });
  test("follows a feature back and forward, whether or not it is on", () => {
    expect(evolution.trail("res.1/7")).toEqual(["res.0/0", "res.1/7", "res.2/2"]);
    expect(evolution.joint("res.0/0", "res.1/7")?.coactivation).toBe(0.5);
    expect(evolution.joint("res.1/7", "res.2/2")?.coactivation).toBeNaN();
    expect(evolution.joint("res.0/0", "res.2/2")).toBeNull();
    expect(evolution.trail("att.9/1")).toEqual([]);
  });
  test("gives a concept's strength in every layer and token", () => {
    const { features, values } = evolution.concept(evolution.trail("res.1/7"));
    expect(features).toHaveLength(3);
    expect(values[2][2]).toBeCloseTo(0.1);
    expect(values[0][2]).toBeNaN();
  });
  test("gives measures and guesses", () => {
    expect(evolution.measures(1, 0)).toMatchObject({ l0: 2, fvu: 0.25 });
    expect(evolution.measures(0, 0).fvu).toBeNaN();
    expect(evolution.guesses(1).map(({ tokens }) => tokens[0].text)).toEqual(["x", "y", " Paris"]);
    expect(evolution.guesses(0)).toEqual([]);
  });
  test("refuses parts that do not fit", () => {
    expect(() => new Evolution({ ...wireEvolution(PLAIN), l0: array("u1", [1]) }, SPECIAL, wireGuesses({}))).toThrow(
      /do not fit/,
    );
    expect(
      () => new Evolution({ ...wireEvolution(PLAIN), maxima: array("f4", [1]) }, SPECIAL, wireGuesses({})),
    ).toThrow(/maxima/);
    expect(readEvolution(null, [], null)).toBeNull();
  });
});

describe("the layout", () => {
  const given = frame(evolution, ["res", "mlp"], 900);
  const found = layout(evolution, evolution.column(1), given);
  test("has layers from left to right, and a band of its own for each kind", () => {
    const at = (name: string) => found.blocks.find(({ block }) => block.name === name);
    expect(at("res.0/0")?.x).toBeLessThan(at("res.1/7")?.x ?? 0);
    expect(at("mlp.0/5")?.y).toBeGreaterThan((given.bands[0].y ?? 0) + given.bands[0].height);
    expect(at("res.0/0")?.x).toBe(at("mlp.0/5")?.x);
  });
  test("is higher for what is stronger, and nothing overlaps", () => {
    const [strong, weak] = ["res.1/7", "res.2/2"].map((name) => found.blocks.find(({ block }) => block.name === name));
    expect(strong?.height).toBeGreaterThan(weak?.height ?? 0);
    for (const a of found.blocks)
      for (const b of found.blocks)
        if (a !== b && a.x === b.x) expect(a.y + a.height <= b.y || b.y + b.height <= a.y).toBe(true);
  });
  test("draws a gap where a site is not open, and no ribbon over it", () => {
    expect(found.gaps.map(({ site }) => site)).toEqual(["mlp.1"]);
    expect(found.ribbons).toHaveLength(2);
  });
  test("keeps its places from token to token", () => {
    expect(layout(evolution, evolution.column(2), given).frame.bands.map(({ y }) => y)).toEqual(
      given.bands.map(({ y }) => y),
    );
  });
  test("works with one layer", () => {
    const one = new Evolution(
      wireEvolution({ sites: ["res.12"], blocks: [[{ 0: 1 }, { 0: 2 }]], maxima: { "res.12/0": 2 } }),
      [false, false],
      wireGuesses({}),
    );
    const only = layout(one, one.column(0), frame(one, one.kinds, 900));
    expect(only.blocks).toHaveLength(1);
    expect(only.frame.cell).toBeLessThan(300);
  });
  test("leads the keyboard along ribbons, over gaps, up and down", () => {
    const column = evolution.column(1);
    const go = (name: string, key: string) => neighbour(found, column, name, key)?.name;
    expect(go("res.0/0", "ArrowRight")).toBe("res.1/7");
    expect(go("mlp.0/5", "ArrowRight")).toBe("mlp.2/5");
    expect(go("res.0/0", "ArrowDown")).toBe("res.0/3");
    expect(go("res.0/0", "ArrowLeft")).toBeUndefined();
    expect(go("res.1/1", "Home")).toBe("res.0/0");
  });
});

describe("an attribution", () => {
  const found = readAttribution({
    target: { feature: null, token: 5, text: " Paris" },
    position: 2,
    edges: [
      { feature: "res.0/0", position: 0, effect: -2, measured: null, raw: 1, strength: null },
      { feature: "res.1/7", position: 1, effect: 1, measured: 0.9, raw: 1, strength: 0.5 },
      { feature: "res.2/2", position: 1, effect: Number.NaN, measured: null, raw: 1, strength: 0.5 },
    ],
  });
  test("has edges by token, those without a number left out", () => {
    expect([...edgesAt(found, 1).keys()]).toEqual(["res.1/7"]);
    expect([...edgesAt(found, 0).keys()]).toEqual(["res.0/0"]);
    expect([...effectsByToken(found as never, 3)]).toEqual([1, 0.5, 0]);
  });
  test("may be missing or unreadable", () => {
    expect(readAttribution(null)).toBeNull();
    expect(readAttribution({ edges: 3 })).toBeNull();
    expect(edgesAt(null, 0).size).toBe(0);
  });
});
