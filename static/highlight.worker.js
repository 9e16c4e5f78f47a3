/**
 * highlight.worker.js: colours code off the main thread.
 * In: {id, code, language}. Out: {id, tokens: [[class or null, text], …] or null}:
 * tokens, not markup, so that the page makes text nodes and never parses HTML.
 * A worker has no import map, hence the full addresses.
 */
import hljs from '/lib/@highlightjs/cdn-assets/es/core.min.js';

/** Asking for a grammar that does not exist would be an error in the console. */
const KNOWN = new Set(
	('bash c clojure cmake cpp csharp css dart diff dockerfile elixir erlang fortran go graphql haskell http ini java javascript json julia kotlin ' +
		'latex less lisp lua makefile markdown nginx nix objectivec ocaml perl php powershell protobuf python r ruby rust scala scss shell sql swift ' +
		'typescript vim wasm xml yaml').split(' '),
);
const ALIASES = {
	js: 'javascript', jsx: 'javascript', mjs: 'javascript', ts: 'typescript', tsx: 'typescript', py: 'python', sh: 'bash', zsh: 'bash', console: 'shell',
	yml: 'yaml', html: 'xml', svg: 'xml', vue: 'xml', rs: 'rust', rb: 'ruby', md: 'markdown', h: 'c', hpp: 'cpp', cc: 'cpp', cs: 'csharp', kt: 'kotlin',
	toml: 'ini', conf: 'ini', patch: 'diff', jsonc: 'json', tex: 'latex', hs: 'haskell', proto: 'protobuf',
};
const loading = new Map();

async function load(name) {
	if (!KNOWN.has(name)) return false;
	if (!loading.has(name)) {
		loading.set(name, import(`/lib/@highlightjs/cdn-assets/es/languages/${name}.min.js`).then((module) => hljs.registerLanguage(name, module.default)));
	}
	await loading.get(name);
	return true;
}

self.onmessage = async ({ data: { id, code, language } }) => {
	let tokens = null;
	try {
		const wanted = language.toLowerCase();
		const name = Object.hasOwn(ALIASES, wanted) ? ALIASES[wanted] : wanted;
		if (await load(name)) tokens = flatten(hljs.highlight(code, { language: name, ignoreIllegals: true }).value);
	} catch {
		// plain code is a fine answer
	}
	self.postMessage({ id, tokens });
};

const ENTITIES = { '&amp;': '&', '&lt;': '<', '&gt;': '>', '&quot;': '"', '&#x27;': "'" };

/** highlight.js writes <span class="…">, </span> and escaped text, nothing else. */
function flatten(html) {
	const tokens = [];
	const open = [];
	for (const [part, name] of html.matchAll(/<span class="([^"]*)">|<\/span>|[^<]+/g)) {
		if (name !== undefined) open.push(name);
		else if (part === '</span>') open.pop();
		else tokens.push([open.at(-1) ?? null, part.replace(/&(?:amp|lt|gt|quot|#x27);/g, (entity) => ENTITIES[entity])]);
	}
	return tokens;
}
