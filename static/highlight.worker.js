/**
 * highlight.worker.js: colours code off the main thread.
 *
 * In: {id, code, language}. Out: {id, tokens: [[class or null, text], …] or null}.
 * Tokens, not markup, so that the page builds text nodes and never parses HTML.
 * A worker has no import map, hence the full addresses.
 */
import hljs from '/lib/@highlightjs/cdn-assets/es/core.min.js';

const ALIASES = {
  js: 'javascript', jsx: 'javascript', mjs: 'javascript', cjs: 'javascript', ts: 'typescript', tsx: 'typescript', py: 'python',
  sh: 'bash', shell: 'bash', zsh: 'bash', console: 'shell', yml: 'yaml', html: 'xml', svg: 'xml', vue: 'xml', rs: 'rust', rb: 'ruby',
  md: 'markdown', 'c++': 'cpp', cc: 'cpp', h: 'c', hpp: 'cpp', cs: 'csharp', kt: 'kotlin', docker: 'dockerfile', toml: 'ini', conf: 'ini',
  golang: 'go', patch: 'diff', jsonc: 'json', json5: 'json', ps1: 'powershell', make: 'makefile', tex: 'latex', ex: 'elixir', hs: 'haskell',
  pl: 'perl', proto: 'protobuf', gql: 'graphql', terraform: 'ini', objc: 'objectivec',
};

/** Asking for a grammar that does not exist would be an error in the console. */
const KNOWN = new Set(
  ('bash c clojure cmake cpp csharp css dart diff dockerfile elixir elm erlang fortran go graphql groovy haskell http ini java javascript json julia ' +
    'kotlin latex less lisp lua makefile markdown matlab nginx nix objectivec ocaml perl php powershell prolog properties protobuf python r ruby rust ' +
    'scala scheme scss shell sql swift tcl typescript vbnet verilog vhdl vim wasm x86asm xml yaml').split(' '),
);

const loading = new Map();

async function load(language) {
  if (hljs.getLanguage(language)) return true;
  if (!KNOWN.has(language)) return false;
  if (!loading.has(language)) {
    loading.set(
      language,
      import(`/lib/@highlightjs/cdn-assets/es/languages/${language}.min.js`).then(
        (module) => {
          hljs.registerLanguage(language, module.default);
          return true;
        },
        () => false, // plain code is a fine answer
      ),
    );
  }
  return loading.get(language);
}

self.onmessage = async ({ data: { id, code, language } }) => {
  let tokens = null;
  try {
    const wanted = String(language).toLowerCase();
    const name = Object.hasOwn(ALIASES, wanted) ? ALIASES[wanted] : wanted;
    if (await load(name)) tokens = flatten(hljs.highlight(code, { language: name, ignoreIllegals: true }).value);
  } catch {
    // plain code is a fine answer
  }
  self.postMessage({ id, tokens });
};

/** highlight.js writes <span class="…">, </span> and escaped text, nothing else. */
function flatten(html) {
  const tokens = [];
  const open = [];
  for (const [part, className] of html.matchAll(/<span class="([^"]*)">|<\/span>|[^<]+/g)) {
    if (className !== undefined) open.push(className);
    else if (part === '</span>') open.pop();
    else tokens.push([open.at(-1) ?? null, unescape(part)]);
  }
  return tokens;
}

const ENTITIES = { '&amp;': '&', '&lt;': '<', '&gt;': '>', '&quot;': '"', '&#x27;': "'" };

function unescape(text) {
  return text.replace(/&(?:amp|lt|gt|quot|#x27);/g, (entity) => ENTITIES[entity]);
}
