import { describe, expect, it } from "vitest";
import { faultOf, hopeless, type Known, standingOf } from "../../js/lab/standing";

const JOINED: Known = { kernel: true, status: "idle", connection: "connected", language: "python", join: "joined" };

describe("how a kernel stands", () => {
  it.each<[string, Partial<Known>]>([
    ["ready", {}],
    ["busy", { status: "busy" }],
    ["none", { kernel: false, status: "unknown" }],
    ["starting", { kernel: false, status: "starting" }],
    ["starting", { status: "starting", join: "not asked" }],
    ["starting", { connection: "connecting", join: "not asked" }],
    ["joining", { language: null, join: "not asked" }],
    ["joining", { join: "asked" }],
    ["waiting", { status: "busy", join: "late" }],
    ["restarting", { status: "restarting" }],
    ["restarting", { status: "autorestarting" }],
    ["dead", { status: "dead" }],
    ["dead", { kernel: false, status: "dead" }],
    ["offline", { connection: "disconnected" }],
    ["language", { language: "julia", join: "asked" }],
    ["language", { language: "r", connection: "disconnected" }],
    ["missing", { join: "missing" }],
    ["old", { join: "old" }],
    ["failed", { join: "failed", status: "busy" }],
  ])("is %s", (standing, known) => {
    expect(standingOf({ ...JOINED, ...known })).toBe(standing);
  });
});

describe("what a failed registration says", () => {
  it.each([
    ["missing", "ModuleNotFoundError", "No module named 'gemloupe'"],
    ["old", "ModuleNotFoundError", "No module named 'gemloupe.lab'"],
    ["failed", "ModuleNotFoundError", "No module named 'numpy'"],
    ["failed", "ImportError", "libtorch.so: cannot open"],
  ] as const)("%s", (fault, name, value) => {
    expect(faultOf(name, value)).toBe(fault);
  });
});

describe("what must be done before a kernel can be asked", () => {
  it.each(["none", "dead", "language", "missing", "old", "failed"] as const)("%s", (standing) => {
    expect(hopeless(standing)).toBe(true);
  });
  it.each(["starting", "joining", "waiting", "restarting", "offline", "busy", "ready"] as const)(
    "not %s",
    (standing) => {
      expect(hopeless(standing)).toBe(false);
    },
  );
});
