import { expect, test, vi } from "vitest";
import { sitePicker } from "../../js/components/site-picker";

const FORWARD = ["res.0", "att.1", "mlp.1", "res.1", "res.2"];

function shown(sites: string[], site: string) {
  const onPick = vi.fn();
  const picker = sitePicker(onPick, new AbortController().signal);
  picker.show(sites, site, true);
  return { picker, onPick, select: picker.el.querySelector("select") as HTMLSelectElement };
}

test("sites of several kinds are listed by kind, and a step leads to the next layer of the same kind", () => {
  const { picker, onPick, select } = shown(FORWARD, "res.1");
  expect([...select.querySelectorAll("optgroup")].map((group) => group.label)).toEqual([
    "residual stream",
    "MLP",
    "attention",
  ]);
  expect([...select.options].map((one) => one.value)).toEqual(["res.0", "res.1", "res.2", "mlp.1", "att.1"]);
  expect(select.value).toBe("res.1");
  expect([picker.step(-1), picker.step(1)]).toEqual(["res.0", "res.2"]);
  (picker.el.querySelector("[aria-label='Next site']") as HTMLButtonElement).click();
  expect(onPick).toHaveBeenCalledExactlyOnceWith("res.2");
});

test("one kind needs no headings, and a site that is not open is still named", () => {
  const { picker, select } = shown(["res.0", "res.2"], "res.9");
  expect(select.querySelector("optgroup")).toBeNull();
  expect([...select.options].map((one) => one.value)).toEqual(["res.9", "res.0", "res.2"]);
  expect([picker.step(-1), picker.step(1)]).toEqual(["res.2", "res.0"]);
});

test("the ends have no step", () => {
  const first = shown(FORWARD, "res.0").picker;
  const last = shown(FORWARD, "att.1").picker;
  expect([first.step(-1), last.step(1)]).toEqual([undefined, undefined]);
});
