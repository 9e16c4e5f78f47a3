import hljs from '../lib/@highlightjs/cdn-assets/es/highlight.min.js'

self.onmessage = ({ data: { id, code, language } }) => {
	const known = hljs.getLanguage(language)
	self.postMessage({
		id,
		tokens: known ? flatten(hljs.highlight(code, { language, ignoreIllegals: true }).value) : null
	})
}

const ENTITIES = { '&amp;': '&', '&lt;': '<', '&gt;': '>', '&quot;': '"', '&#x27;': "'" }

function flatten(html) {
	const tokens = []
	const open = []
	for (const [part, name] of html.matchAll(/<span class="([^"]*)">|<\/span>|[^<]+/g)) {
		if (name !== undefined) open.push(name)
		else if (part === '</span>') open.pop()
		else tokens.push([open.at(-1) ?? null, part.replace(/&(?:amp|lt|gt|quot|#x27);/g, entity => ENTITIES[entity])])
	}
	return tokens
}
