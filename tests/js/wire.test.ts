import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { thaw } from "../../js/core/frozen";
import { decodeArray, halfToNumber, SparseActs, type WireActs } from "../../js/core/wire";
import { array, wireActs } from "./fake";

const GOLDEN = "tests/wire";

interface Frame {
  name: string;
  acts?: unknown;
  /** [token, feature, raw activation] of everything that is on, in order. */
  entries: [number, number, number][];
  /** The same as [token][feature], unless that would be too long. */
  dense?: number[][];
}

/** float32 kept as float16 times a scale, multiplied here in float32 too: the last bit may differ. */
const near = (value: number) => expect.closeTo(value, Math.max(0, 5 - Math.log10(Math.max(Math.abs(value), 1e-4))));

describe("golden frames", () => {
  const frames = readdirSync(GOLDEN)
    .filter((file) => file.endsWith(".json"))
    .map((file) => JSON.parse(readFileSync(`${GOLDEN}/${file}`, "utf8")) as Frame)
    .filter((frame) => frame.acts !== undefined);

  test("there are some", () => expect(frames.length).toBeGreaterThanOrEqual(5));

  test.each(frames)("$name reads as the kernel meant it", ({ acts: saved, entries, dense }) => {
    const wire = thaw(saved) as WireActs;
    const acts = new SparseActs(wire);
    expect([acts.tokens, acts.features]).toEqual(wire.shape);
    const found: [number, number, number][] = [];
    for (let token = 0; token < acts.tokens; token++) {
      const { features, values } = acts.row(token);
      features.forEach((feature, i) => {
        found.push([token, feature, values[i]]);
      });
    }
    expect(found).toEqual(entries.map(([token, feature, value]) => [token, feature, near(value)]));
    for (const [token, feature, value] of entries) expect(acts.column(feature)[token]).toEqual(near(value));
    dense?.forEach((row, token) => {
      row.forEach((value, feature) => {
        expect(acts.column(feature)[token]).toEqual(near(value));
      });
    });
  });
});

describe("half precision", () => {
  test.each([
    [0x0000, 0],
    [0x0001, 2 ** -24],
    [0x03ff, 1023 * 2 ** -24],
    [0x0400, 2 ** -14],
    [0x3c00, 1],
    [0x3555, 0.333251953125],
    [0xc000, -2],
    [0x7bff, 65504],
    [0x7c00, Number.POSITIVE_INFINITY],
    [0xfc00, Number.NEGATIVE_INFINITY],
  ])("%i is %d", (bits, number) => expect(halfToNumber(bits)).toBe(number));
  test("not a number", () => expect(halfToNumber(0x7e00)).toBeNaN());
  test("negative zero", () => expect(Object.is(halfToNumber(0x8000), -0)).toBe(true));
});

describe("arrays", () => {
  test("a view that starts at an odd byte", () => {
    const frame = new Uint8Array(32);
    new Uint32Array(frame.buffer, 4, 2).set([7, 70_000]);
    const odd = new Uint8Array(33);
    odd.set(frame.slice(4, 12), 5);
    expect([...decodeArray({ dtype: "u4", shape: [2], data: new DataView(odd.buffer, 5, 8) })]).toEqual([7, 70_000]);
  });
  test("a view into a longer buffer takes only its own bytes", () => {
    const buffer = Uint16Array.of(1, 2, 3, 4).buffer;
    expect([...decodeArray({ dtype: "u2", shape: [2], data: new DataView(buffer, 2, 4) })]).toEqual([2, 3]);
  });
  test("signed numbers, bytes, and an ArrayBuffer without a view", () => {
    expect([...decodeArray(array("i4", [-5, 5]))]).toEqual([-5, 5]);
    expect([...decodeArray({ dtype: "u1", shape: [3], data: Uint8Array.of(0, 255, 1).buffer })]).toEqual([0, 255, 1]);
  });
  test("too few bytes are refused", () => {
    expect(() => decodeArray({ dtype: "f4", shape: [3], data: new DataView(new ArrayBuffer(8)) })).toThrow("8 bytes");
  });
  test("an unknown dtype is refused", () => {
    expect(() => decodeArray({ dtype: "f8" as "f4", shape: [1], data: new ArrayBuffer(8) })).toThrow('"f8"');
  });
});

describe("sparse activations", () => {
  const acts = new SparseActs(
    wireActs([
      [5, 0, 0],
      [0, 0, 0],
      [1, 0, 2],
    ]),
  );
  test("token 0 and feature 0 are real", () => {
    expect([...acts.row(0).features]).toEqual([0]);
    expect([...acts.column(0)]).toEqual([5, 0, 1]);
  });
  test("an empty row, an inactive feature, a token that is not there", () => {
    expect(acts.row(1).features.length).toBe(0);
    expect([...acts.column(1)]).toEqual([0, 0, 0]);
    expect(acts.row(99).features.length).toBe(0);
  });
  test("the active features are in order", () => {
    expect([...new SparseActs(wireActs([[0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]])).active()]).toEqual([2, 11]);
  });
  test("the scale is applied", () => {
    expect([...new SparseActs({ ...wireActs([[0.5, 1]]), scale: 70_000 }).row(0).values]).toEqual([35_000, 70_000]);
  });
  test("indices of four bytes", () => {
    const wide = { ...wireActs([[1, 2]]), shape: [1, 70_000] as [number, number], indices: array("u4", [0, 69_999]) };
    expect(new SparseActs(wide).column(69_999)[0]).toBe(2);
  });
  test("parts that do not fit together are refused", () => {
    expect(() => new SparseActs({ ...wireActs([[1, 2]]), indptr: array("u4", [0, 1]) })).toThrow("do not fit");
  });
});
