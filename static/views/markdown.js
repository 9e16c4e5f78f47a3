// The text is hostile
import DOMPurify from 'dompurify'
import { Lexer, Parser, Renderer } from 'marked'
import { CODE, PROSE, spell } from '../marks.js'
import { trusted } from '../trusted.js'
import { codeBlock } from './code.js'
import { safeImage } from './content.js'
import { diagramView } from './diagram.js'
import { h, icon, nodesOf, refill, template } from './dom.js'
import { heal } from './heal.js'
import { escapeHtml, headingTag, isTooLong, options, safeHtml, TAGS } from './markup.js'
import { formulaView } from './mathematics.js'

const HEADING = 'heading' // the library's name, and also one of the page that is shortened
const STEP = 16_384
const MAX_TIME = 50 // ms, of one frame
const MAX_INLINE = 4096 // characters; longer text may take quadratic time
const MAX_DETAILS = 200_000 // of open details
const SETTLED = 12 // characters that make the block before them final

const ALLOWED = {
	ALLOWED_TAGS: [...TAGS],
	ALLOWED_ATTR: ['href', 'src', 'alt', 'title', 'align', 'start', 'open'],
	ALLOW_DATA_ATTR: false,
	ALLOW_ARIA_ATTR: false,
	RETURN_DOM_FRAGMENT: true,
	TRUSTED_TYPES_POLICY: trusted
}

const ALERTS = { note: 'info', tip: 'spark', important: 'alert', warning: 'alert', caution: 'shield' }
const RTL = /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}\p{Script=Adlam}]/u

const DRAWN = { mermaid: diagramView, math: text => h('p', {}, formulaView(text.trim(), true)) }

function fence(text, language) {
	return Object.hasOwn(DRAWN, language) ? DRAWN[language](text) : codeBlock(text, language).el
}

/** @type {Props} */
const rules = {
	html: ({ text }) => safeHtml(text),
	// marked does not escape text in raw <kbd> and <code>.
	text({ tokens, text, escaped }) {
		return tokens
			? this.parser.parseInline(tokens)
			: escaped
				? text.replace(/[<>]/g, escapeHtml)
				: escapeHtml(text).replace(/&#38;(?=#\d{1,7};|#x[\da-f]{1,6};|\w+;)/gi, '&')
	},
	checkbox: ({ checked }) => (checked ? '☑ ' : '☐ '),
	code: ({ text, lang }) => `<pre title="${escapeHtml(lang?.split(/\s/)[0] ?? '')}">${escapeHtml(text)}</pre>`,
	[HEADING]({ tokens, depth }) {
		const tag = headingTag(depth)
		return `<${tag}>${this.parser.parseInline(tokens)}</${tag}>`
	}
}
const renderer = Object.assign(new Renderer(), rules)

function lex(text, links) {
	if (/^(?: {0,3}>[ \t]?){60}/m.test(text)) throw new Error('quotes in quotes take marked quadratic time')
	const lexer = new Lexer(options)
	Object.assign(lexer.tokens.links, links)
	lexer.blockTokens(text, lexer.tokens)
	for (const { src, tokens } of lexer.inlineQueue) {
		if (src.length > MAX_INLINE) tokens.push({ type: 'text', raw: src, text: src })
		else lexer.inlineTokens(src, tokens)
	}
	return lexer.tokens
}

function render(tokens) {
	if (tokens.some(token => token.type === 'plain' || isTooLong(token)))
		return tokens.map(({ raw }) => h('p.plain', { prose: raw, dir: 'auto' }))
	/** @type {any} */
	const fragment = DOMPurify.sanitize(Parser.parse(tokens, { ...options, renderer }), ALLOWED)
	showHidden(fragment)
	if (RTL.test(fragment.textContent)) for (const node of fragment.querySelectorAll(BLOCKS)) setDirection(node)
	for (const [selector, show] of Object.entries(SHOWN))
		for (const node of fragment.querySelectorAll(selector)) show(node)
	return [...fragment.childNodes]
}

// Images first: a link's text may be one
const SHOWN = {
	img: showImage,
	a: showLink,
	'sup[title]': showNoteMark,
	pre: node => node.replaceWith(fence(node.textContent, node.title)),
	'code[title^="formula"]': node => node.replaceWith(formulaView(node.textContent, node.title !== 'formula')),
	blockquote: showAlert,
	li: node => node.classList.toggle('task', /^[☑☐]/.test(node.textContent)),
	table(node) {
		const box = template('table').el
		node.replaceWith(box)
		box.append(node)
	}
}

// Loads nothing from other servers
function showImage(node) {
	const address = node.getAttribute('src')
	const src = safeImage(address)
	const words = spell(node.alt)
	if (src) Object.assign(node, { src, alt: words })
	else node.replaceWith(node.closest('a') ? words || 'image' : h('a', { href: address }, words || 'image'))
}

// Never to this very page: such a link could carry a token
function showLink(node) {
	const address = node.getAttribute('href')
	const url = URL.canParse(address) ? new URL(address) : {}
	const here = url.host?.replace(/\.(?=:|$)/, '') === location.host || /[#&]token=/.test(url.hash)
	const safe = url.protocol === 'mailto:' || (/^https?:$/.test(url.protocol) && !here)
	if (!safe) return node.replaceWith(h('span', {}, ...node.childNodes))
	Object.assign(node, { href: url.href, target: '_blank', rel: 'noopener noreferrer', title: url.href })
	tellTarget(node, url)
}

function showNoteMark(node) {
	const [, way, name] = /^(to|from) (.+)$/.exec(node.title) ?? []
	if (!way) return
	const other = `${way === 'to' ? 'from' : 'to'} ${name}`
	const find = () => [...node.closest('.md').querySelectorAll('sup[title]')].find(({ title }) => title === other)
	refill(
		node,
		h(
			'button.note-mark',
			{
				label: way === 'to' ? `Footnote ${name}` : `Back from footnote ${name}`,
				onclick: () => find()?.firstChild.focus()
			},
			name
		)
	)
}

function showHidden(fragment) {
	if (!CODE.any.test(fragment.textContent)) return
	const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT)
	const texts = []
	while (walker.nextNode()) texts.push(walker.currentNode)
	for (const text of texts) {
		const parent = text.parentElement
		if (!parent?.closest('pre, code[title^="formula"]'))
			text.replaceWith(...nodesOf(text.data, parent?.closest('code, a') ? CODE : PROSE))
	}
}

const ADDRESS = /(?:\w+:\/\/|www\.)\S+|(?:[\p{L}\p{N}-]+\.)+\p{L}{2,}(?:[/?#:]\S*)?/gu
const MAX_TARGET = 60

function tellTarget(link, url) {
	const same = ({ host, pathname, search }) => host.replace(/^www\./, '') + (pathname + search).replace(/\/$/, '')
	const leadsThere = said => {
		const full = /^\w+:\/\//.test(said) ? said : `https://${said}`
		return URL.canParse(full) && same(new URL(full)) === same(url)
	}
	const mail = url.protocol === 'mailto:'
	const said = mail ? [link.textContent.replace(url.pathname, '')] : [link.textContent]
	const others = said.flatMap(text => text.match(ADDRESS) ?? []).filter(address => mail || !leadsThere(address))
	if (!others.length && !url.host.includes('xn--') && !url.username) return
	const path = mail ? url.pathname : url.pathname + url.search
	const shown = path.length > MAX_TARGET ? `${path.slice(0, MAX_TARGET)}…` : path === '/' ? '' : path
	link.after(h('span.leads', { text: ` → ${mail ? 'mailto:' : url.host}${shown}` }))
}

const BLOCKS = 'p, h3, h4, h5, h6, th, td, summary, dt, dd, div, li, ul, ol, blockquote, table'

// `dir="auto"` ignores inner blocks that have a direction of their own
function setDirection(node) {
	const contains = node.matches('ul, ol, blockquote, table, div') || node.querySelector(BLOCKS)
	node.dir = contains && RTL.test(/\p{L}/u.exec(node.textContent)?.[0] ?? '') ? 'rtl' : 'auto'
}

function showAlert(quote) {
	const first = quote.querySelector(':scope > p')?.firstChild
	const [mark, kind] =
		/^\[!(note|tip|important|warning|caution)\][ \t]*(?:\n|$)/i.exec(
			first?.nodeType === Node.TEXT_NODE ? first.data : ''
		) ?? []
	if (!mark) return
	const name = kind.toLowerCase()
	first.data = first.data.slice(mark.length)
	if (first.nextSibling?.nodeName === 'BR') first.nextSibling.remove()
	if (!quote.querySelector(':scope > p').textContent) quote.querySelector(':scope > p').remove()
	quote.dataset.alert = name
	quote.prepend(h('p.alert-title', {}, icon(ALERTS[name]), name[0].toUpperCase() + name.slice(1)))
}

export class MarkdownView {
	constructor(text) {
		this.el = h('div.md')
		this.final = 0
		this.tail = []
		this.fence = null
		this.links = {}
		this.nextAt = 0
		while (text && !this.update(text, true));
	}

	// `text` extends the shown text. Returns false if it must be called again
	update(text, done) {
		const begun = performance.now()
		// Selected text stays until the turn ends.
		if (!done && (begun < this.nextAt || this.#isSelected())) return false
		const clean = text.replace(/\r\n?/g, '\n')
		for (let end = 0; end < clean.length; ) {
			end = Math.min(clean.length, Math.max(end, this.final + (this.fence?.length ?? 0)) + STEP)
			const last = done && end === clean.length
			this.#feed(clean.slice(this.final, end), last)
			if (!last && performance.now() - begun > MAX_TIME) return false
		}
		const cost = performance.now() - begun
		this.nextAt = cost > 4 ? begun + cost * 7 : 0
		return true
	}

	#isSelected() {
		const selection = getSelection()
		return !selection.isCollapsed && this.tail.some(node => selection.containsNode(node, true))
	}

	#feed(text, done) {
		const rest = this.fence ? this.#feedFence(text, done) : text
		if (!rest) return
		let tokens = [{ type: 'plain', raw: rest }]
		try {
			tokens = lex(done ? rest : heal(rest), this.links)
			this.links = tokens.links
		} catch {}
		const last = tokens.findLastIndex(({ type }) => type !== 'space')
		const count = done ? tokens.length : finalCount(tokens, last)
		for (const node of this.tail) node.remove()
		this.#show(tokens.slice(0, count))
		for (const { raw } of tokens.slice(0, count)) this.final += raw.length
		this.tail = []
		if (count > last) return
		const open = tokens[count]
		if (count === last && open.type === 'code' && /^ {0,3}(```|~~~).*\n/.test(open.raw)) {
			const language = open.lang?.split(/\s/)[0]
			this.fence = { block: codeBlock('', language, true), language, length: 0 }
			this.el.append(this.fence.block.el)
			this.#feedFence(open.raw)
		} else {
			this.tail = this.#show(tokens.slice(count))
		}
	}

	#feedFence(rest, done) {
		const { fence } = this
		// Half a line may become the closing fence.
		const whole = done ? rest : rest.replace(/\n {0,3}[`~]*$/, '')
		const { text, raw } = /** @type {any} */ (new Lexer(options)).tokenizer.fences(whole)
		const code = text.replace(/\n+$/, '')
		fence.block.append(code.slice(fence.length))
		fence.length = code.length
		if (raw.length === whole.length && !done) return ''
		if (Object.hasOwn(DRAWN, fence.language ?? '')) fence.block.el.replaceWith(DRAWN[fence.language](code))
		else fence.block.finish()
		this.fence = null
		this.final += raw.length
		return rest.slice(raw.length)
	}

	#show(tokens) {
		const nodes = tokens.length ? render(tokens) : []
		this.el.append(...nodes)
		return nodes
	}
}

function finalCount(tokens, last) {
	let length = 0
	for (let index = last; index > 0; index -= 1) {
		const { raw, type } = tokens[index]
		length += raw.length
		if (type !== 'space' && (length > SETTLED || raw.includes('\n'))) return index
	}
	return tokens.length && (isTooLong(tokens[0]) || tokens[0].raw.length > MAX_DETAILS) ? 1 : 0
}
