// Bundles the clinic's pages into the Python package, where the service finds them.

import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
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

// NiiVue's letters and its shine lie in its code as data: addresses. Here they become files, so
// that the page's policy need not let in pictures from anywhere but the service.
const withoutData = {
  name: "without-data",
  setup(bundler) {
    bundler.onLoad({ filter: /niivue[\\/]build[\\/]niivue[\\/]index\.js$/ }, ({ path }) => ({
      contents: readFileSync(path, "utf8").replace(
        /"data:image\/(png|jpeg);base64,([^"]+)"/g,
        (_, kind, code) => {
          const content = Buffer.from(code, "base64");
          const digest = createHash("sha256").update(content).digest("hex").slice(0, 8);
          writeFileSync(join(into, `chunk-${digest}.${kind}`), content);
          return JSON.stringify(`/static/clinic/chunk-${digest}.${kind}`);
        },
      ),
    }));
  },
};

rmSync(into, { recursive: true, force: true });
mkdirSync(into, { recursive: true });
const { metafile } = await build({
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
  metafile: true,
  plugins: [withoutZarr, withoutData],
});

// The browser fetches every small part at once instead of finding one by the other; NiiVue's large
// one comes when 3-D is asked for.
const preloads = Object.entries(metafile.outputs)
  .filter(([, { bytes }]) => bytes < 200_000)
  .map(([path]) => `<link rel="modulepreload" href="/static/clinic/${basename(path)}">\n`);
const page = readFileSync(join(web, "src", "clinic.html"), "utf8");
writeFileSync(join(into, "clinic.html"), page.replace("</head>", `${preloads.join("")}</head>`));
copyFileSync(join(web, "src", "clinic.css"), join(into, "clinic.css"));
