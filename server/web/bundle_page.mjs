// Writes the page into a few minified files, which a browser loads in less time than 60 modules.
//
//   node bundle_page.mjs FOLDER
//
// FOLDER is replaced. The sources in static/ stay what developers read and tests import; the server sends
// the minified files only if they were built from exactly these sources (see built_page.py).

import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import process from 'node:process';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { build } from 'esbuild';

const STATIC = fileURLToPath(new URL('../../static/', import.meta.url));
const MODULES = fileURLToPath(new URL('../../node_modules/', import.meta.url));
const FOLDER = process.argv[2];
const FRESH = `${FOLDER}.${process.pid}`;
// Names of the page's own properties, and of parts of its templates, which neither the browser, a library, the protocol
// nor the storage knows, and by which no string finds a property.
const OWN_NAMES = new RegExp(
	`^(${`
		abandoned actions addressOf adminToken again agentName asked attachments attempt auditApp auditEvent awaySince
		beside blocked boxes buttons byIndex byKey callAdmin calls cancel cards caution cell cells changeCount changing checkWords
		choice choices choose chooseAgent closePane closeText codes column comments compared complain composer
		connection contents conversation copying current danger dirty discard dollars draft draw drawn draws durationMs
		edits elapsed elsewhere endedAt expiresAt explores facts focusComposer folded following forget goBeside greeting
		heading headings hear ideas inHistory inPage inWorktree isLast isLong isNarrow jumpTo later leave leftEnd load
		loadAgents loadingShownAt loadMore look lookAtChanges looking menuOf nextAt offered older onDevice onLine opened
		openFile openSession outbox palette panels parts paths pause permissions picker pickers policies policy
		policyName preferences probe projects projectsShown purpose queue reach readTo recent refusal refused reopen
		replacing requestId requests requeue resume retryAt review reviewWords rewritten saveDraft saveOutbox
		savePreferences saveToken scroll scroller seededAt seen sendAnew sendNow sendWords sent setAgents setPane
		setProjects setPurpose setRunning setup shared shell show shown showSide showSidebar showWaiting sides signOut
		sinceName sought spoken stale startedAt startNew stash states stopReason storage subagents suggestions synced
		tabs tasks terminal ticked tiles timer toEnd toolKind tools touched turn turnEntries turnIndex turns turnViews
		undoName undoneWords unended unfold unsent view views visit visiting visitTurn visitWaiting waitingPrompt whyNot
		wire withdraw withdrawing words written
	`
		.trim()
		.replaceAll(/\s+/g, '|')})$`
);
// Custom properties of the stylesheets: a size that is defined once stands for itself, all others get short names;
// scripts set only `--tint`.
const shortNames = new Map();
const sizes = new Map();
const shortProperties = {
	name: 'short-properties',
	setup: ({ onLoad }) =>
		onLoad({ filter: /\.css$/ }, ({ path }) => ({
			loader: 'css',
			contents: readFileSync(path, 'utf8')
				.replaceAll(/(--[\w-]+):[^;}]+;/g, (found, name) => (sizes.get(name) ? '' : found))
				.replaceAll(/var\((--[\w-]+)\)/g, (found, name) => sizes.get(name) ?? found)
				.replaceAll(/--(?!tint\b)[a-z][\w-]*/g, shortNameOf)
		}))
};
function shortNameOf(name) {
	if (!shortNames.has(name)) shortNames.set(name, `--${shortNames.size.toString(36)}`);
	return shortNames.get(name);
}
// A part that is loaded later is loaded by the page, so the modules that both use stay in the page.
const PAGE = `${STATIC}app.js`;
const loadedLater = {
	name: 'loaded-later',
	setup({ onLoad }) {
		const parts = new Set(
			names.flatMap(name =>
				[...readFileSync(STATIC + name, 'utf8').matchAll(/import\('(\.[^']+)'\)/g)].map(([, path]) =>
					fileURLToPath(new URL(path, pathToFileURL(STATIC + name)))
				)
			)
		);
		onLoad({ filter: /\.js$/ }, ({ path }) =>
			parts.has(path) ? { contents: `${readFileSync(path, 'utf8')}\nimport ${JSON.stringify(PAGE)}` } : null
		);
	}
};
// What the page names often, of the language and the browser, gets short names. `performance.now` stays a look-up,
// because tests replace it.
const OFTEN = `
	Array.isArray JSON.stringify Math.floor Math.max Math.min Number.isFinite Object.assign Object.entries performance.now
	Boolean Promise String URLSearchParams clearTimeout document encodeURIComponent globalThis history setTimeout
`
	.trim()
	.split(/\s+/);
const shortOf = name => `short_${name.replace('.', '_')}`;
const ALIASES = `${FRESH}.aliases.mjs`;
// In other words than those that are replaced.
const aliases = OFTEN.map(name => {
	const [owner, method] = name.split('.');
	if (owner === 'performance')
		return `const clock = performance; export const ${shortOf(name)} = () => clock.${method}()`;
	if (name === 'globalThis') return `export const ${shortOf(name)} = self`;
	return method
		? `export const { ${method}: ${shortOf(name)} } = ${owner}`
		: `export const { ${name}: ${shortOf(name)} } = self`;
});
const common = {
	bundle: true,
	minify: true,
	format: 'esm',
	target: 'es2024',
	logLevel: 'warning',
	legalComments: 'none',
	charset: 'utf8'
};

// The same digest as that of built_page.py: of the names and bytes of all served sources.
function digestOf(names) {
	const digest = createHash('sha256');
	for (const name of names) {
		const bytes = readFileSync(STATIC + name);
		digest.update(`${name}\0${bytes.length}\0`).update(bytes);
	}
	return digest.digest('hex');
}

const names = readdirSync(STATIC, { recursive: true, withFileTypes: true })
	.filter(entry => entry.isFile() && !entry.name.endsWith('.d.ts'))
	.map(({ parentPath, name }) => `${parentPath}/${name}`.slice(STATIC.length).replace(/^\//, ''))
	.sort();
const sheets = names.filter(name => name.endsWith('.css')).map(name => readFileSync(STATIC + name, 'utf8'));
for (const [, name, value] of sheets.join('\n').matchAll(/(--[\w-]+):([^;}]+)/g))
	sizes.set(name, !sizes.has(name) && /^[\d.]+rem$/.test(value) ? value : null);
const digest = digestOf(names);
const version = digest.slice(0, 12);
let page = readFileSync(`${STATIC}index.html`, 'utf8');
const [, map] = /<script type="importmap">(.*?)<\/script>/s.exec(page);
const libraries = Object.entries(JSON.parse(map).imports);

mkdirSync(FRESH, { recursive: true });
try {
	writeFileSync(ALIASES, aliases.join('\n'));
	const own = await build({
		...common,
		entryPoints: [PAGE],
		plugins: [loadedLater],
		outdir: FRESH,
		splitting: true,
		mangleProps: OWN_NAMES,
		mangleCache: {},
		define: Object.fromEntries(OFTEN.map(name => [name, shortOf(name)])),
		inject: [ALIASES],
		chunkNames: 'p-[hash]',
		external: libraries.map(([name]) => name),
		metafile: true
	});
	const library = await build({
		...common,
		entryPoints: libraries.map(([name, path]) => ({
			in: path.replace('./lib/', MODULES),
			out: `lib-${name.replaceAll(/\W+/g, '-')}`
		})),
		outdir: FRESH,
		entryNames: '[name]-[hash]',
		splitting: true,
		chunkNames: 'lib-[name]-[hash]',
		metafile: true
	});
	await build({
		...common,
		entryPoints: names.filter(name => /^[^/]*\.css$/.test(name)).map(name => STATIC + name),
		outdir: FRESH,
		external: ['*.woff2'],
		plugins: [shortProperties]
	});
	// Served under one address whatever their version: UNVERSIONED in built_page.py.
	for (const [format, scripts] of [
		['esm', ['highlight.worker.js']],
		['iife', ['sw.js', 'docs.js']]
	])
		await build({
			...common,
			bundle: false,
			format,
			entryPoints: scripts.map(name => STATIC + name),
			outdir: FRESH
		});
	const outputs = Object.entries(library.metafile.outputs);
	const built = path =>
		outputs.find(([, { entryPoint }]) => entryPoint && `${process.cwd()}/${entryPoint}`.endsWith(path.slice(5)));
	const served = path => `static/${path.split('/').at(-1)}`;
	const imports = Object.fromEntries(libraries.map(([name, path]) => [name, `./${served(built(path)[0])}`]));
	const first = [
		...firstLoaded(own.metafile.outputs),
		...firstLibraries(library.metafile.outputs, imports, own.metafile)
	];
	page = page
		.replace(map, JSON.stringify({ imports }))
		.replaceAll(/<link rel="modulepreload"[^>]*>\n/g, '')
		.replace(/(?=<script type="module")/, first.map(path => `<link rel="modulepreload" href="${path}">\n`).join(''))
		.replaceAll(/(?<=")static\/[\w.-]+\.(?:css|js)(?=")/g, path =>
			path.includes('-') && first.includes(path) ? path : `${path}?v=${version}`
		)
		.replaceAll(/(?<=data-part=")\w+/g, name => own.mangleCache[name] ?? name)
		.replaceAll(/\n\t+/g, '\n');
	writeFileSync(`${FRESH}/index.html`, page);
	writeFileSync(
		`${FRESH}/built.json`,
		JSON.stringify({ digest, version, libraries: readdirSync(FRESH).filter(name => name.startsWith('lib-')) })
	);
	rmSync(FOLDER, { recursive: true, force: true });
	renameSync(FRESH, FOLDER);
} finally {
	rmSync(ALIASES, { force: true });
	rmSync(FRESH, { recursive: true, force: true });
}

// The chunks that app.js imports before anything is opened.
function firstLoaded(outputs) {
	const found = new Set();
	const visit = path => {
		for (const { path: next, kind, external } of outputs[path].imports) {
			if (kind !== 'import-statement' || external || found.has(next)) continue;
			found.add(next);
			visit(next);
		}
	};
	visit(Object.keys(outputs).find(path => path.endsWith('/app.js')));
	return [...found].map(path => `static/${path.split('/').at(-1)}`);
}

// The libraries that those chunks import.
function firstLibraries(outputs, imports, { outputs: own }) {
	const paths = Object.keys(own).filter(
		path => /\/app\.js$/.test(path) || firstLoaded(own).includes(`static/${path.split('/').at(-1)}`)
	);
	const wanted = new Set(
		paths.flatMap(path =>
			own[path].imports.filter(({ kind, external }) => external && kind === 'import-statement').map(one => one.path)
		)
	);
	const found = new Set([...wanted].filter(name => imports[name]).map(name => imports[name].slice(2)));
	for (const path of found) {
		const output = outputs[Object.keys(outputs).find(name => name.endsWith(path.slice(6)))];
		for (const { path: next, kind } of output.imports)
			if (kind === 'import-statement') found.add(`static/${next.split('/').at(-1)}`);
	}
	return found;
}
