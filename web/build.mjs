// Bundles the clinic's pages into the Python package, where the service finds them.

import { copyFileSync, mkdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const web = dirname(fileURLToPath(import.meta.url));
const into = join(web, "..", "src", "qinjing", "serve", "static", "clinic");

// NiiVue's reader of Zarr brings codecs in WebAssembly, which we never read with and which the
// page's policy would not let run.
const withoutZarr = {
  name: "without-zarr",
  setup(bundler) {
    bundler.onResolve({ filter: /^(zarrita|numcodecs)/ }, ({ path }) => ({ path, namespace: "none" }));
    bundler.onLoad({ filter: /.*/, namespace: "none" }, () => ({ contents: "module.exports = {}" }));
  },
};

rmSync(into, { recursive: true, force: true });
mkdirSync(into, { recursive: true });
await build({
  entryPoints: [join(web, "src", "main.ts")],
  outdir: into,
  bundle: true,
  splitting: true,
  minify: true,
  format: "esm",
  target: "es2022",
  chunkNames: "chunk-[hash]",
  legalComments: "none",
  logLevel: "error",
  plugins: [withoutZarr],
});
for (const name of ["clinic.html", "clinic.css"]) {
  copyFileSync(join(web, "src", name), join(into, name));
}
