// Bundle the page into the folder that is given.

import { build } from "esbuild";

await build({
  entryPoints: ["page.jsx"],
  outdir: process.argv[2],
  bundle: true,
  format: "esm",
  jsx: "automatic",
  define: { "process.env.NODE_ENV": '"production"' },
  logLevel: "warning",
});
