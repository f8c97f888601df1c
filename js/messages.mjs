/**
 * node js/messages.mjs: what the front end says, read from its sources, as JSON for tests/py/test_words.py.
 *
 * `messages` are the texts given to t, tn, mark and JupyterLab's trans, with their plurals. `bare` are texts that look
 * as if they were shown and are given to none of these.
 */

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseAst } from "rolldown/parseAst";

const ROOMS = ["js/core", "js/components", "js/widgets", "js/lab"];
/** Calls that translate, and how many texts they take first. */
const TRANSLATE = { t: 1, mark: 1, tn: 2, __: 1, _n: 2 };
/** Where a text is shown, whatever it looks like. */
const SHOWN = new Set([
  ...["text", "title", "placeholder", "label", "caption", "textContent", "ariaLabel", "summary"],
  ...["aria-label", "aria-description", "aria-roledescription", "aria-valuetext"],
]);
/** Where a text is for the machine, even if it has spaces. */
const MACHINE = new Set([
  ...[
    "class",
    "className",
    "d",
    "transform",
    "viewBox",
    "points",
    "style",
    "cssText",
    "data",
    "svgstr",
    "font",
    "description",
    "id",
    "query",
  ],
  ...["for", "href", "type", "role", "rel", "list", "dir"],
]);
const MACHINE_CALLS = new Set([
  ...["querySelector", "querySelectorAll", "closest", "matches", "getElementById", "Error", "RpcError", "DOMException"],
  ...["warn", "error", "debug", "setProperty", "matchMedia", "getPropertyValue", "addEventListener", "includes"],
  ...["startsWith", "endsWith", "execute", "addCommand", "RegExp", "replace", "split", "test"],
]);
const SHOWING_CALLS = new Set(["say", "append", "replaceChildren", "prepend", "before", "after", "setAttribute"]);
const SENTENCE = /[A-Za-z]{2,}[,.:;]?\s+[A-Za-z({]/;
const LETTERS = /[A-Za-z]{2,}/;

const files = (folder) =>
  readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return entry.name === "lib" || entry.name === "style" ? [] : files(path);
    return /\.ts$/.test(entry.name) && !/\.d\.ts$/.test(entry.name) ? [path] : [];
  });

const nameOf = (node) =>
  node?.type === "Identifier" || node?.type === "PrivateIdentifier"
    ? node.name
    : node?.type === "Literal"
      ? String(node.value)
      : node?.type === "MemberExpression"
        ? nameOf(node.property)
        : "";

/** What one source file says. */
export function read(path) {
  const source = readFileSync(path, "utf8");
  const messages = [];
  const bare = [];
  const line = (at) => source.slice(0, at).split("\n").length;

  /** The texts an expression may come to: of a condition both. Null where it is not written out. */
  const texts = (node) => {
    if (node?.type === "Literal" && typeof node.value === "string") return [node.value];
    if (node?.type === "TemplateLiteral" && !node.expressions.length) return [node.quasis[0].value.cooked];
    if (node?.type === "ConditionalExpression") {
      const both = [texts(node.consequent), texts(node.alternate)];
      return both.includes(null) ? null : both.flat();
    }
    if (node?.type === "BinaryExpression" && node.operator === "+") {
      const both = [texts(node.left), texts(node.right)];
      return both.includes(null) ? null : [both.map(([one]) => one).join("")];
    }
    return null;
  };

  /** `where` is what the innermost property, attribute or call makes of a text: "shown", "machine" or "". */
  const walk = (node, where) => {
    if (Array.isArray(node)) {
      for (const one of node) walk(one, where);
      return;
    }
    if (!node || typeof node !== "object" || typeof node.type !== "string") return;
    if (/^TS/.test(node.type) && node.expression) return walk(node.expression, where);
    switch (node.type) {
      case "ImportDeclaration":
      case "ExportAllDeclaration":
      case "ImportExpression":
      case "TSTypeAnnotation":
      case "TSTypeAliasDeclaration":
      case "TSInterfaceDeclaration":
      case "TSTypeParameterInstantiation":
      case "ThrowStatement":
        return;
      case "CallExpression":
      case "NewExpression": {
        const called = nameOf(node.callee);
        const count = Object.hasOwn(TRANSLATE, called) ? TRANSLATE[called] : 0;
        if (count) {
          const given = node.arguments.slice(0, count).map(texts);
          const written = given.length === count && given.every((one) => one !== null);
          if (written && count === 1) for (const one of given[0]) messages.push({ one, path, line: line(node.start) });
          else if (written) messages.push({ one: given[0][0], many: given[1][0], path, line: line(node.start) });
          else if (node.arguments[0]?.type === "TemplateLiteral")
            bare.push({ text: source.slice(node.start, node.end), path, line: line(node.start) });
          walk(node.arguments.slice(written ? count : 0), "");
          return;
        }
        walk(node.callee, "");
        if (called === "setAttribute") {
          walk(node.arguments.slice(1), SHOWN.has(nameOf(node.arguments[0])) ? "shown" : "machine");
          return;
        }
        const inside = MACHINE_CALLS.has(called) ? "machine" : SHOWING_CALLS.has(called) ? "shown" : "";
        // say(subject, text, tone)
        const said = called === "say" && node.arguments.length > 1;
        walk(said ? node.arguments.slice(1, 2) : node.arguments, inside);
        return;
      }
      case "Property":
      case "PropertyDefinition": {
        const key = nameOf(node.key);
        walk(node.value, SHOWN.has(key) ? "shown" : MACHINE.has(key) ? "machine" : "");
        return;
      }
      case "VariableDeclarator":
        walk(node.init, MACHINE.has(nameOf(node.id)) ? "machine" : "");
        return;
      case "AssignmentExpression": {
        const key = nameOf(node.left);
        walk(node.left, "machine");
        walk(node.right, SHOWN.has(key) ? "shown" : MACHINE.has(key) ? "machine" : where);
        return;
      }
      case "MemberExpression":
        walk(node.object, "");
        if (node.computed) walk(node.property, "machine");
        return;
      case "BinaryExpression":
        // What is compared with a text is a value, not something said.
        if (/^[!=]==?$/.test(node.operator)) return;
        walk(node.left, where);
        walk(node.right, where);
        return;
      case "ConditionalExpression":
        walk(node.test, "");
        walk(node.consequent, where);
        walk(node.alternate, where);
        return;
      case "SwitchCase":
        walk(node.consequent, where);
        return;
      case "ArrowFunctionExpression":
      case "FunctionExpression":
      case "FunctionDeclaration":
        walk(node.params, "");
        walk(node.body, node.body.type === "BlockStatement" ? "" : where);
        return;
      case "Literal":
      case "TemplateLiteral": {
        if (node.type === "Literal" && typeof node.value !== "string") return;
        const text = node.type === "Literal" ? node.value : node.quasis.map((quasi) => quasi.value.cooked).join("{}");
        if (where !== "machine" && (SENTENCE.test(text) || (where === "shown" && LETTERS.test(text))))
          bare.push({ text, path, line: line(node.start) });
        if (node.type === "TemplateLiteral") walk(node.expressions, where);
        return;
      }
      default:
        for (const [key, part] of Object.entries(node)) if (key !== "typeAnnotation") walk(part, where);
    }
  };
  walk(parseAst(source, { lang: "ts" }).body, "");
  return { messages, bare };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const found = ROOMS.flatMap(files).map(read);
  const all = (kind) => found.flatMap((one) => one[kind]);
  console.log(JSON.stringify({ messages: all("messages"), bare: all("bare") }, null, 1));
}
