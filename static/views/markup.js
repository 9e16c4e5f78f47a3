import { Marked } from 'marked'

export const TAGS = new Set(
	'b i u s q p div br hr sub sup kbd ins del strong em mark small samp var abbr cite dfn code pre blockquote ul ol li dl dt dd table thead tbody tfoot tr th td h1 h2 h3 h4 h5 h6 details summary a img'.split(
		' '
	)
)
const MAX_DEPTH = 12
const MAX_OPEN = 50 // raw tags
const MAX_FORMULA = 4000
const MAX_BLOCK = 24_576 // characters

export const escapeHtml = text => text.replace(/[&<>"']/g, char => `&#${char.charCodeAt(0)};`)

const ATTRIBUTES =
	/\s(?:(href|src|alt|align|start|open)|[^\s"'<>/=]+)(?![^\s"'<>/=])(?:\s*=\s*("[^"]*"|'[^']*'|[^\s"'=<>`]+))?/gi

// A tag outside TAGS is shown as text
export function safeHtml(text) {
	return text.replace(
		/<!--[\s\S]*?(?:-->|$)|<(\/?)([a-z][a-z\d]*)((?:[^<>"']|"[^"]*"|'[^']*')*)>|[<>]/gi,
		(found, end, name, attributes = '') => {
			if (found.startsWith('<!--')) return ''
			const tag = name?.toLowerCase()
			if (!TAGS.has(tag)) return escapeHtml(found)
			const kept = [...attributes.matchAll(ATTRIBUTES)]
				.filter(([, known]) => known)
				.map(([, known, value]) => ` ${known}${value ? `=${value}` : ''}`)
			return `<${end}${tag.replace(/^h([1-6])$/, (_, depth) => headingTag(Number(depth)))}${kept.join('')}>`
		}
	)
}

// The page itself has h1 and h2
export const headingTag = depth => `h${Math.min(6, depth + 2)}`

// Prices, shell variables and prose are not formulas
export function isFormula(text) {
	if (text.length > MAX_FORMULA || /`|\n\s*\n/.test(text) || !text.trim()) return false
	if (/^\d/.test(text) && /\s/.test(text) && !/[\\^_={}]/.test(text)) return false
	return /[\\^_=+<>{}]/.test(text) || !/\p{L}{2,}[\s,;.]+\p{L}{2,}/u.test(text)
}

const formula = (raw, text, display) => ({ type: 'formula', raw, text: text.trim(), display })
const indexOf = pattern => src => {
	const found = pattern.exec(src)
	return found ? found.index : undefined
}

const formulaHtml = ({ text, display }) =>
	`<code title="${display ? 'formula display' : 'formula'}">${escapeHtml(text)}</code>`

const BLOCK =
	/^ {0,3}(?:\$\$(?!\$)((?:(?!\$\$|\n[ \t]*\n)[\s\S])+)\$\$|\\\[((?:(?!\\\]|\n[ \t]*\n)[\s\S])+)\\\]|(\\begin\{((?:equation|align|gather|alignat|multline|CD)\*?)\}(?:(?!\n[ \t]*\n)[\s\S]){1,4000}?\\end\{\4\}))[ \t]*(?:\n|$)/
const INLINE =
	/^(?:\$\$(?!\$)([^$\n](?:(?!\$\$|\n[ \t]*\n)[\s\S])*)\$\$|\\\[((?:(?!\\\]|\n[ \t]*\n)[\s\S])+)\\\](?!\()|\\\(((?:(?!\\\)|\n[ \t]*\n)[\s\S])+)\\\)|\$`([^`\n]+)`\$|\$(?![\s$])((?:\\.|(?!\n[ \t]*\n)[^$\\`])+?)(?<!\s)\$(?![\w$]))/

const blockFormula = {
	name: 'formulaBlock',
	level: 'block',
	start: indexOf(/(?<=\n) {0,3}(?:\$\$|\\\[|\\begin\{)/),
	tokenizer(src) {
		const [raw, dollars, brackets, environment] = BLOCK.exec(src) ?? []
		const text = dollars ?? brackets ?? environment
		if (text && text.length <= MAX_FORMULA && (!brackets || isBracketFormula(brackets)))
			return { ...formula(raw, text, true), type: 'formulaBlock' }
	},
	renderer: token => `<p>${formulaHtml(token)}</p>\n`
}

const inlineFormula = {
	name: 'formula',
	level: 'inline',
	start: indexOf(/\$|\\[([]/),
	tokenizer(src, tokens) {
		const [raw, display, brackets, parentheses, ticks, dollars] = INLINE.exec(src) ?? []
		if (!raw) return
		const before = tokens.at(-1)?.raw.at(-1) ?? ''
		if (brackets !== undefined) return isBracketFormula(brackets) ? formula(raw, brackets, true) : undefined
		if (raw.startsWith('$') && /[\w$\\]/.test(before)) return
		const text = display ?? parentheses ?? ticks ?? dollars
		if (isFormula(text)) return formula(raw, text, display !== undefined)
	},
	renderer: formulaHtml
}

// Escaped brackets are often prose: \[1\], \[a link\]
const isBracketFormula = text => isFormula(text) && /[\\^_=+<>{}]|^\s*[a-z]\s*$/i.test(text)

const path = {
	name: 'path',
	level: 'inline',
	start: indexOf(/\b[A-Za-z]:\\|\\\\[\w.]/),
	tokenizer(src, tokens) {
		const found = /^(?:[A-Za-z]:|\\\\[\w.-]+)\\[^\s<>"|?*`]*/.exec(src)
		if (!found || /[\w\\]/.test(tokens.at(-1)?.raw.at(-1) ?? '')) return
		const raw = found[0].replace(/[).,;:!\]]+$/, '')
		return { type: 'path', raw, text: raw }
	},
	renderer: ({ text }) => escapeHtml(text)
}

const footnoteMark = {
	name: 'footnoteMark',
	level: 'inline',
	start: indexOf(/\[\^/),
	tokenizer(src) {
		const found = /^\[\^(\d{1,4}|[A-Za-z]{3,}[\w-]{0,36})\](?!\()/.exec(src)
		if (found) return { type: 'footnoteMark', raw: found[0], text: found[1] }
	},
	renderer: ({ text }) => `<sup title="to ${escapeHtml(text)}">${escapeHtml(text)}</sup>`
}

const footnote = {
	name: 'footnote',
	level: 'block',
	start: indexOf(/(?<=\n)\[\^[^\]\s]+\]:/),
	tokenizer(src) {
		const found =
			/^\[\^([^\]\s]{1,40})\]:[ \t]*([^\n]*(?:\n(?:[ \t]{2,}[^\n]+|(?!\[\^|[ \t]*\n|[-*+>#`]|\d+[.)])[^\n]+))*)(?:\n|$)/.exec(
				src
			)
		if (found)
			return {
				type: 'footnote',
				raw: found[0],
				text: found[1],
				tokens: this.lexer.inline(found[2].replace(/\n[ \t]*/g, '\n'))
			}
	},
	renderer(token) {
		return `<p><sup title="from ${escapeHtml(token.text)}">${escapeHtml(token.text)}</sup> ${this.parser.parseInline(token.tokens)}</p>\n`
	}
}

const details = {
	name: 'details',
	level: 'block',
	start: indexOf(/(?<=\n) {0,3}<details\b/i),
	tokenizer(src) {
		const opening = /^ {0,3}<details(\s[^<>]*)?>/i.exec(src)
		const depth = this.lexer.folded ?? 0
		if (!opening || depth >= MAX_DEPTH) return
		let open = 0
		let [end, next] = [src.length, src.length]
		for (const { 0: tag, index } of src.matchAll(/<(\/?)details\b[^<>]*>/gi)) {
			open += tag[1] === '/' ? -1 : 1
			if (open > 0) continue
			;[end, next] = [index, index + tag.length]
			break
		}
		let body = src.slice(opening[0].length, end)
		const summary = /^\s*<summary(?:\s[^<>]*)?>([\s\S]*?)(?:<\/summary>|$)/i.exec(body)
		if (summary) body = body.slice(summary[0].length)
		const rest = /^[ \t]*\n*/.exec(src.slice(next))[0]
		this.lexer.folded = depth + 1
		const token = {
			type: 'details',
			raw: src.slice(0, next) + rest,
			open: /\sopen\b/i.test(opening[1] ?? ''),
			summary: this.lexer.inline(summary?.[1].trim() || 'Details'),
			tokens: this.lexer.blockTokens(body.replace(/^\n+/, ''), [])
		}
		this.lexer.folded = depth
		return token
	},
	renderer({ open, summary, tokens }) {
		return `<details${open ? ' open' : ''}><summary>${this.parser.parseInline(summary)}</summary>${this.parser.parse(tokens.map(bounded))}</details>\n`
	}
}

const bounded = token => (isTooLong(token) ? { type: 'paragraph', tokens: [{ type: 'text', text: token.raw }] } : token)

// Tags within tags take more than linear time to lay out
export const isTooLong = ({ raw, type }) =>
	type !== 'code' &&
	type !== 'details' &&
	(raw.length > MAX_BLOCK || count(raw, OPENING) - count(raw, /<\//g) > MAX_OPEN)

const OPENING = /<(?!(?:br|hr|img|p|li|t[dhr]|d[dt])\b)[a-z]/gi
const count = (text, pattern) => text.match(pattern)?.length ?? 0

/** @type {any[]} */
const extensions = [blockFormula, inlineFormula, path, footnoteMark, footnote, details]
export const options = new Marked({ extensions }).defaults
