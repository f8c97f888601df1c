import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { heartbeat } from "../../js/core/heartbeat";
import { isAbort, Rpc } from "../../js/core/rpc";
import { FakeModel } from "./fake";

let model: FakeModel;
let life: AbortController;
let rpc: Rpc;

beforeEach(() => {
  model = new FakeModel();
  life = new AbortController();
  rpc = new Rpc(model, life.signal);
});
afterEach(() => vi.useRealTimers());

describe("a call", () => {
  test("asks once and ends with the value", async () => {
    const answer = rpc.call("facts", { site: "res.0", features: [0] });
    expect(model.sent).toEqual([
      { kind: "call", id: expect.any(Number), method: "facts", params: { site: "res.0", features: [0] } },
    ]);
    model.reply({ kind: "value", id: model.sent[0].id, value: { 0: "x" } });
    expect(await answer).toEqual({ 0: "x" });
    expect(rpc.busy).toBe(false);
  });
  test("ends with the kernel's error", async () => {
    const answer = rpc.call("site", { site: "res.99" });
    model.reply({ kind: "error", id: model.sent[0].id, code: "site-not-open", message: "res.99 is not open" });
    await expect(answer).rejects.toMatchObject({ code: "site-not-open", message: "res.99 is not open" });
  });
  test("ends as cancelled when the kernel says so", async () => {
    const answer = rpc.call("ping");
    model.reply({ kind: "cancelled", id: model.sent[0].id });
    expect(isAbort(await answer.catch((error) => error))).toBe(true);
  });
  test("tells the kernel when the caller gives up, and ignores the late answer", async () => {
    const wanted = new AbortController();
    const answer = rpc.call("facts", {}, { signal: wanted.signal });
    wanted.abort();
    expect(isAbort(await answer.catch((error) => error))).toBe(true);
    const [{ id }] = model.sent;
    expect(model.sent[1]).toEqual({ kind: "cancel", id });
    model.reply({ kind: "value", id, value: 1 });
    expect(model.sent.length).toBe(2);
  });
  test("is not even asked when the caller gave up before", async () => {
    const answer = rpc.call("facts", {}, { signal: AbortSignal.abort() });
    expect(isAbort(await answer.catch((error) => error))).toBe(true);
    expect(model.sent).toEqual([]);
  });
  test("gives up after its time and says how long it waited", async () => {
    vi.useFakeTimers();
    const answer = rpc.call("ping", {}, { timeout: 3000 });
    const end = expect(answer).rejects.toMatchObject({ code: "timeout", message: expect.stringContaining("3 s") });
    await vi.advanceTimersByTimeAsync(3001);
    await end;
    expect(model.sent.at(-1)?.kind).toBe("cancel");
  });
  test("ends with its view, which then listens no more", async () => {
    const answer = rpc.call("ping");
    life.abort();
    expect(isAbort(await answer.catch((error) => error))).toBe(true);
    expect(model.listenerCount()).toBe(0);
  });
  test("survives a host that cannot send", async () => {
    vi.spyOn(console, "warn").mockImplementation(() => undefined);
    model.send = () => {
      throw new Error("comm closed");
    };
    const answer = rpc.call("ping", {}, { timeout: 5 });
    await expect(answer).rejects.toMatchObject({ code: "timeout" });
  });
  test("answers to another view's call are not taken for its own", async () => {
    const other = new Rpc(model, life.signal);
    const [mine, theirs] = [rpc.call("ping"), other.call("ping")];
    expect(model.sent[0].id).not.toBe(model.sent[1].id);
    model.reply({ kind: "value", id: model.sent[1].id, value: "theirs" });
    expect(await theirs).toBe("theirs");
    expect(rpc.busy).toBe(true);
    model.reply({ kind: "value", id: model.sent[0].id, value: "mine" });
    expect(await mine).toBe("mine");
  });
  test("messages that are none of ours are left alone", () => {
    for (const message of [null, "text", { kind: "value" }, { kind: "other", id: 1 }])
      model.emit("msg:custom", message, []);
    expect(rpc.busy).toBe(false);
  });
});

describe("the heartbeat", () => {
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval", "setTimeout", "clearTimeout", "performance"] });
  });
  const start = (visible = true) => {
    const said: boolean[] = [];
    heartbeat(rpc, { visible: () => visible, onChange: (silent) => said.push(silent), signal: life.signal });
    return said;
  };

  test("asks every ten seconds while somebody looks", async () => {
    model.answer = () => null;
    const said = start();
    await vi.advanceTimersByTimeAsync(31_500);
    expect(model.calls("ping").length).toBe(3);
    expect(said).toEqual([]);
  });
  test("does not ask while hidden", async () => {
    start(false);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(model.sent).toEqual([]);
  });
  test("says that the kernel is silent five seconds after an unanswered call, and takes it back at any answer", async () => {
    const said = start();
    const call = rpc.call("facts");
    await vi.advanceTimersByTimeAsync(4000);
    expect(said).toEqual([]);
    await vi.advanceTimersByTimeAsync(1600);
    expect(said).toEqual([true]);
    model.reply({ kind: "value", id: model.sent[0].id, value: 1 });
    await call;
    expect(said).toEqual([true, false]);
  });
  test("a busy kernel is asked once, not every ten seconds", async () => {
    start();
    await vi.advanceTimersByTimeAsync(100_000);
    expect(model.calls("ping").length).toBe(1);
  });
  test("stops with the view", async () => {
    start();
    life.abort();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(model.sent).toEqual([]);
  });
});
