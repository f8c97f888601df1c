/** node js/build.mjs all|widgets|lab [--watch]: the widgets' bundles and the JupyterLab extension. */

import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import * as esbuild from "esbuild";
import { read } from "./messages.mjs";

const what = process.argv[2] ?? "all";
const watch = process.argv.includes("--watch");
const STATIC = "py_src/gemloupe/static";
/** Every widget instance sends its own copy of its bundle through the comm. */
const LARGEST = 60_000;

const entries = readdirSync("js/widgets").filter((name) => name.endsWith(".ts") && !name.startsWith("_"));
const isTwin = (name) => name.endsWith(".static.ts");
const paths = (names) => names.map((name) => `js/widgets/${name}`);
const common = {
  bundle: true,
  minify: true,
  target: "es2022",
  outdir: STATIC,
  metafile: true,
  logLevel: "warning",
  legalComments: "none",
};

const widgets = { ...common, entryPoints: paths(entries.filter((name) => !isTwin(name))), format: "esm" };
const twins = { ...common, entryPoints: paths(entries.filter(isTwin)), format: "iife", loader: { ".css": "empty" } };
const lab = {
  entryPoints: ["js/lab/index.ts"],
  bundle: true,
  packages: "external",
  format: "esm",
  target: "es2022",
  outdir: "js/lab/lib",
  sourcemap: true,
  loader: { ".ipynb": "json" },
  logLevel: "warning",
};

/** Beside each widget the messages it may show: the kernel sends their translations, and no others. */
function writeMessages({ outputs }) {
  for (const [path, { inputs }] of Object.entries(outputs)) {
    if (!path.endsWith(".js")) continue;
    const sources = Object.keys(inputs).filter((source) => source.endsWith(".ts"));
    const said = new Set(sources.flatMap((source) => read(source).messages.map(({ one }) => one)));
    writeFileSync(join(STATIC, `${basename(path, ".js")}.messages.json`), JSON.stringify([...said].sort()));
  }
}

function checkBundles() {
  for (const name of readdirSync(STATIC).filter((file) => /\.(js|css)$/.test(file))) {
    const path = join(STATIC, name);
    const { size } = statSync(path);
    const text = readFileSync(path, "utf8");
    if (size > LARGEST) throw new Error(`${name} is ${size} bytes, more than ${LARGEST}`);
    if (/<\/(script|style)|<!--/i.test(text)) throw new Error(`${name} cannot be written into a page`);
    console.log(`${name.padEnd(28)} ${(size / 1000).toFixed(1).padStart(6)} kB`);
  }
}

// hatch_build.py writes it again: it says that the outputs are of certain sources.
rmSync(join(STATIC, ".stamp"), { force: true });

const jobs = [...(what === "lab" ? [] : [widgets, twins]), ...(what === "widgets" ? [] : [lab])];
for (const job of jobs) {
  if (watch) await (await esbuild.context({ ...job, logLevel: "info" })).watch();
  else {
    const { metafile } = await esbuild.build(job);
    if (job === widgets) writeMessages(metafile);
  }
}
if (!watch && what !== "lab") checkBundles();
if (!watch && what !== "widgets")
  execFileSync(
    process.execPath,
    [
      "node_modules/@jupyter/builder/lib/build-labextension.js",
      "--core-package-file",
      "node_modules/@jupyterlab/core-meta/core.package.json",
      ".",
    ],
    { stdio: "inherit" },
  );
