// Packs the package: node build.mjs FOLDER. wire.js is the page's own file, to which a link leads here.

import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';

const here = path.dirname(fileURLToPath(import.meta.url));
const target = path.resolve(process.argv[2]);
const fresh = mkdtempSync(path.join(tmpdir(), 'clawdforge-client-'));
const npm = path.join(path.dirname(process.execPath), '../lib/node_modules/npm/bin/npm-cli.js');
const tsc = path.join(path.dirname(createRequire(import.meta.url).resolve('typescript/package.json')), 'bin/tsc');

function run(...argv) {
	const { status } = spawnSync(process.execPath, argv, { cwd: fresh, stdio: ['ignore', 'inherit', 'inherit'] });
	if (status !== 0) throw new Error(`${argv.join(' ')} failed`);
}

try {
	for (const name of readdirSync(here))
		if (/\.js$|^(package\.json|README\.md|LICENSE)$/.test(name))
			copyFileSync(path.join(here, name), path.join(fresh, name));
	copyFileSync(path.join(here, '../../static/types.d.ts'), path.join(fresh, 'types.d.ts'));
	const options = ['--allowJs', '--declaration', '--emitDeclarationOnly', '--skipLibCheck', '--strict', 'false'];
	const level = ['--target', 'es2024', '--module', 'nodenext', '--lib', 'esnext,dom,dom.iterable,dom.asynciterable'];
	run(tsc, ...options, ...level, '--types', '', 'client.js', 'types.d.ts');
	// The page's types are global; the package has none.
	rmSync(path.join(fresh, 'types.d.ts'));
	const wire = path.join(fresh, 'wire.d.ts');
	const wireOptions =
		'{ url: string; credential: () => Promise<object>; after?: number | null;' +
		' on?: Record<string, (...values: any[]) => void>; env?: Record<string, any> }';
	writeFileSync(wire, readFileSync(wire, 'utf8').replaceAll(/\bWireOptions\b(?=[,)])/g, wireOptions));
	mkdirSync(target, { recursive: true });
	run(npm, 'pack', '--silent', '--pack-destination', target);
} finally {
	rmSync(fresh, { recursive: true, force: true });
}
