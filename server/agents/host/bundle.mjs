// Writes acpx into one file, which Node loads in a third of the time of acpx's 220 modules.
//
//   node bundle.mjs FILE
//
// FILE is in acpx's own folder. acpx finds its packages from there, and an installation removes the file.

import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

await build({
	entryPoints: [fileURLToPath(new URL('acpx_modules.mjs', import.meta.url))],
	outfile: process.argv[2],
	bundle: true,
	platform: 'node',
	target: 'node22',
	format: 'esm',
	logLevel: 'warning'
});
