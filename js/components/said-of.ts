/** What is said of a feature: its best label and who gave it, the user's own, a note and a star. */

import type { Label, Said } from "../core/card";
import { mark, t } from "../core/words";
import { h } from "./dom";
import "./said-of.css";

export interface SaidOfOptions {
  /** Keeps the user's own label; "" takes it away. */
  label(text: string): Promise<unknown>;
  note(text: string): Promise<unknown>;
  live: boolean;
  signal: AbortSignal;
}

export interface SaidOf {
  el: HTMLElement;
  show(said: Said): void;
}

export const SOURCES: Record<string, string> = {
  user: mark("yours"),
  automatic: mark("automatic"),
  curated: mark("read by hand"),
  explained: mark("explained by a language model"),
};

export function sourceText({ source, score, by }: Label): string {
  const name = t(SOURCES[source] ?? source);
  const scored = score === null ? name : t("{name}, score {score}", { name, score: score.toFixed(2) });
  return by && by !== "you" ? t("{name}, from {by}", { name: scored, by }) : scored;
}

export function saidOf({ label, note, live, signal }: SaidOfOptions): SaidOf {
  const text = h("span", { class: "gl-label-text", attrs: { dir: "auto" } });
  const source = h("span", { class: "gl-label-source" });
  const edit = h("button", { class: "gl-small", text: t("edit label"), attrs: { type: "button" } });
  const addNote = h("button", { class: "gl-small", text: t("add note"), attrs: { type: "button" } });
  const line = h("div", { class: "gl-label" }, text, source, edit, addNote);
  const field = h("input", {
    class: "gl-label-field",
    attrs: {
      type: "text",
      dir: "auto",
      maxlength: 500,
      placeholder: t("your own label; empty takes it away"),
      "aria-label": t("Your label"),
    },
  });
  const keep = h("button", { class: "gl-small", text: t("keep"), attrs: { type: "button" } });
  const leave = h("button", { class: "gl-small", text: t("cancel"), attrs: { type: "button" } });
  const form = h("div", { class: "gl-label-form" }, field, keep, leave);
  const others = h("ul", { class: "gl-label-others", attrs: { "aria-label": t("Other labels") } });
  const noteField = h("textarea", {
    class: "gl-note",
    attrs: { rows: 2, dir: "auto", maxlength: 20_000, placeholder: t("your note"), "aria-label": t("Your note") },
  });
  const el = h("div", { class: "gl-said-of" }, line, form, others, noteField);
  form.hidden = true;
  edit.hidden = !live;
  noteField.readOnly = !live;
  let said: Said = { labels: [], note: "", starred: false };
  let noting = false;

  const close = () => {
    form.hidden = true;
    line.hidden = false;
    edit.focus();
  };
  edit.addEventListener(
    "click",
    () => {
      const own = said.labels.find((one) => one.source === "user");
      field.value = own?.text ?? "";
      form.hidden = false;
      line.hidden = true;
      field.focus();
      field.select();
    },
    { signal },
  );
  const submit = () => {
    label(field.value.trim()).then(close, () => field.focus());
  };
  keep.addEventListener("click", submit, { signal });
  leave.addEventListener("click", close, { signal });
  form.addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "Escape" && !(event.key === "Enter" && event.target === field)) return;
      event.preventDefault();
      event.stopPropagation();
      if (event.key === "Escape") close();
      else submit();
    },
    { signal },
  );
  addNote.addEventListener(
    "click",
    () => {
      noting = true;
      draw();
      noteField.focus();
    },
    { signal },
  );
  const keepNote = () => {
    if (!live || noteField.value === said.note) return;
    note(noteField.value).catch(() => undefined);
  };
  noteField.addEventListener("change", keepNote, { signal });
  noteField.addEventListener(
    "blur",
    () => {
      noting = false;
      draw();
    },
    { signal },
  );
  const draw = () => {
    const [best, ...rest] = said.labels;
    text.textContent = best?.text ?? t("no label");
    text.classList.toggle("gl-quiet", !best || best.source === "automatic");
    source.textContent = best ? sourceText(best) : "";
    others.replaceChildren(
      ...rest.map((one) =>
        h(
          "li",
          {},
          h("span", { text: one.text, attrs: { dir: "auto" } }),
          h("span", { class: "gl-label-source", text: sourceText(one) }),
        ),
      ),
    );
    others.hidden = !rest.length;
    noteField.hidden = !(noting || said.note !== "" || noteField.matches(":focus"));
    addNote.hidden = !live || !noteField.hidden;
  };
  return {
    el,
    show(given) {
      said = given;
      if (!noteField.matches(":focus")) noteField.value = given.note;
      draw();
    },
  };
}
