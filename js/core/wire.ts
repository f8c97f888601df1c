/** Arrays and sparse activations as the kernel sends them. */

export type Dtype = "u1" | "u2" | "u4" | "i4" | "f2" | "f4";
export type Numbers = Uint8Array | Uint16Array | Uint32Array | Int32Array | Float32Array;

export interface WireArray {
  dtype: Dtype;
  shape: number[];
  data: ArrayBuffer | ArrayBufferView;
}

export interface WireActs {
  shape: [tokens: number, features: number];
  indptr: WireArray;
  indices: WireArray;
  values: WireArray;
  scale: number;
}

const BYTES: Record<Dtype, number> = { u1: 1, u2: 2, u4: 4, i4: 4, f2: 2, f4: 4 };

/** IEEE 754 half precision from its 16 bits. */
export function halfToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** The array's numbers, flat; f2 becomes Float32Array. Throws when the bytes are not `shape` many of `dtype`. */
export function decodeArray(array: WireArray): Numbers {
  const { dtype, shape, data } = array;
  const size = BYTES[dtype];
  if (size === undefined) throw new Error(`array of unknown dtype "${String(dtype)}"`);
  const count = shape.reduce((product, side) => product * side, 1);
  const bytes = data.byteLength;
  if (bytes !== count * size) throw new Error(`array of shape [${shape}] and dtype ${dtype} came with ${bytes} bytes`);
  const view = ArrayBuffer.isView(data);
  let buffer = view ? data.buffer : data;
  let offset = view ? data.byteOffset : 0;
  if (offset % size !== 0) {
    // A typed array cannot start at an odd offset, and hosts may hand out any slice of a frame.
    buffer = buffer.slice(offset, offset + bytes);
    offset = 0;
  }
  switch (dtype) {
    case "u1":
      return new Uint8Array(buffer, offset, count);
    case "u2":
      return new Uint16Array(buffer, offset, count);
    case "u4":
      return new Uint32Array(buffer, offset, count);
    case "i4":
      return new Int32Array(buffer, offset, count);
    case "f4":
      return new Float32Array(buffer, offset, count);
    case "f2":
      return Float32Array.from(new Uint16Array(buffer, offset, count), halfToNumber);
  }
}

/** Activations [token, feature] as compressed sparse rows, in raw activation units; what is not listed is 0. */
export class SparseActs {
  readonly tokens: number;
  readonly features: number;
  readonly #indptr: Numbers;
  readonly #indices: Numbers;
  readonly #values: Float32Array;
  #columns: Columns | undefined;

  constructor(wire: WireActs) {
    [this.tokens, this.features] = wire.shape;
    this.#indptr = decodeArray(wire.indptr);
    this.#indices = decodeArray(wire.indices);
    const values = Float32Array.from(decodeArray(wire.values));
    for (let i = 0; i < values.length; i++) values[i] *= wire.scale;
    this.#values = values;
    const last = this.#indptr[this.tokens];
    if (this.#indptr.length !== this.tokens + 1 || last !== values.length || this.#indices.length !== values.length)
      throw new Error("the parts of the sparse activations do not fit together");
  }

  get nnz(): number {
    return this.#values.length;
  }

  /** The features that are on at a token, ascending, and their raw activations. */
  row(token: number): { features: Numbers; values: Float32Array } {
    if (!(token >= 0 && token < this.tokens)) return { features: new Uint32Array(0), values: new Float32Array(0) };
    const [from, to] = [this.#indptr[token], this.#indptr[token + 1]];
    return { features: this.#indices.subarray(from, to), values: this.#values.subarray(from, to) };
  }

  /** One feature's raw activation at every token. */
  column(feature: number): Float32Array {
    const dense = new Float32Array(this.tokens);
    const at = this.entries(feature);
    at.tokens.forEach((token, i) => {
      dense[token] = at.values[i];
    });
    return dense;
  }

  /** The tokens, ascending, where a feature is on, and its raw activations there. */
  entries(feature: number): { tokens: Uint32Array; values: Float32Array } {
    const columns = this.#byColumn();
    const slot = columns.slot.get(feature);
    if (slot === undefined) return { tokens: new Uint32Array(0), values: new Float32Array(0) };
    const [from, to] = [columns.indptr[slot], columns.indptr[slot + 1]];
    return { tokens: columns.tokens.subarray(from, to), values: columns.values.subarray(from, to) };
  }

  /** The features that are on somewhere, ascending. */
  active(): Uint32Array {
    return this.#byColumn().features;
  }

  #byColumn(): Columns {
    this.#columns ??= byColumn(this.#indptr, this.#indices, this.#values);
    return this.#columns;
  }
}

interface Columns {
  features: Uint32Array;
  /** feature -> its place in `features`. */
  slot: Map<number, number>;
  indptr: Uint32Array;
  tokens: Uint32Array;
  values: Float32Array;
}

/** Only active features get a column: a text lights a few thousand of up to a million. */
function byColumn(rowptr: Numbers, indices: Numbers, values: Float32Array): Columns {
  const counts = new Map<number, number>();
  for (const feature of indices) counts.set(feature, (counts.get(feature) ?? 0) + 1);
  const features = Uint32Array.from(counts.keys()).sort();
  const slot = new Map<number, number>();
  const indptr = new Uint32Array(features.length + 1);
  features.forEach((feature, i) => {
    slot.set(feature, i);
    indptr[i + 1] = indptr[i] + (counts.get(feature) ?? 0);
  });
  const next = indptr.slice();
  const tokens = new Uint32Array(values.length);
  const sorted = new Float32Array(values.length);
  for (let token = 0; token + 1 < rowptr.length; token++)
    for (let i = rowptr[token]; i < rowptr[token + 1]; i++) {
      const place = next[slot.get(indices[i]) as number]++;
      tokens[place] = token;
      sorted[place] = values[i];
    }
  return { features, slot, indptr, tokens, values: sorted };
}
