// The page's one policy of Trusted Types: without it the browser refuses strings as markup or as scripts
const SCRIPTS = ['static/highlight.worker.js', 'static/sw.js']

const rules = {
	// Only DOMPurify calls it, for a document without scripts, and returns what is safe
	createHTML: html => html,
	createScriptURL(path) {
		if (!SCRIPTS.includes(path)) throw new TypeError(`not a script of this page: ${path}`)
		return new URL(path, document.baseURI).href
	}
}

/** @type {any} a browser without Trusted Types takes the strings */
export const trusted = /** @type {any} */ (globalThis).trustedTypes?.createPolicy('clawdforge', rules) ?? rules
