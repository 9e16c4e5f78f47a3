import { spell } from '../marks.js'
import { trusted } from '../trusted.js'
import { codeNodes, copyText, exactNodes, h, refill, setText, template, whenNear } from './dom.js'
import { plural } from './format.js'

export const MAX_COLOURED = 60_000 // characters
const LIVE_COLOURED = 12_000 // while the text grows
const LIVE_EVERY = 400 // ms
const MAX_EXACT = 10_000 // characters shown at once

let worker
let asked = 0
const waiting = new Map()
const shown = new WeakMap()

/** @returns {Promise<[string | null, string][] | null>} parts of the text with their classes */
export function tokensOf(text, language) {
	if (!worker) {
		worker = new Worker(trusted.createScriptURL('static/highlight.worker.js'), { type: 'module' })
		worker.onmessage = ({ data: { id, tokens } }) => {
			waiting.get(id)(tokens)
			waiting.delete(id)
		}
	}
	const id = (asked += 1)
	worker.postMessage({ id, code: text, language })
	return new Promise(resolve => waiting.set(id, resolve))
}

async function paint(code) {
	const { text, language } = shown.get(code)
	const tokens = await tokensOf(text, language)
	const now = shown.get(code).text
	if (!tokens || !now.startsWith(text)) return
	const nodes = tokens.flatMap(([name, part]) =>
		name ? [h('span', { class: name }, codeNodes(part))] : codeNodes(part)
	)
	refill(code, ...nodes, ...codeNodes(now.slice(text.length)))
}

export function codeBlock(text, language = '', growing = false) {
	const { el, name, pre, code } = template('code')
	const source = { text: text.replace(/\n$/, ''), language }
	shown.set(code, source)
	code.append(...codeNodes(source.text))
	setText(name, language || 'text')
	pre.ariaLabel = spell(`Code ${language}`)
	name.after(copyButton(() => source.text))
	let timer
	const finish = () => {
		clearTimeout(timer)
		if (language && source.text.length < MAX_COLOURED) whenNear(code, () => paint(code))
	}
	if (!growing) finish()
	const append = more => {
		source.text += more
		const nodes = codeNodes(more)
		if (nodes.length === 1 && typeof nodes[0] === 'string' && code.lastChild?.nodeType === Node.TEXT_NODE)
			code.lastChild.appendData(more)
		else code.append(...nodes)
		if (!language || source.text.length > LIVE_COLOURED || timer) return
		timer = setTimeout(() => {
			timer = 0
			paint(code)
		}, LIVE_EVERY)
	}
	return { el, append, finish }
}

export function exactBlock(text, label = 'Command', nodes = exactNodes) {
	const { el, name, pre, code } = template('code')
	el.classList.add('exact')
	const show = from => {
		const end = from + MAX_EXACT + (/[\uD800-\uDBFF]/.test(text[from + MAX_EXACT - 1]) ? 1 : 0)
		code.append(...nodes(text.slice(from, end)))
		if (end >= text.length) return
		const more = h('button.strip.warn.wide', {
			text: `${plural(text.length - end, 'more character')} of this: show more`,
			onclick: () => {
				more.remove()
				show(end)
			}
		})
		el.append(more)
	}
	show(0)
	setText(name, label)
	pre.ariaLabel = label
	name.after(copyButton(() => text))
	return el
}

export function copyButton(text, label = 'Copy') {
	const { el, words } = template('copy')
	setText(words, label)
	el.onclick = async () => {
		setText(words, (await copyText(await text())) ? 'Copied' : 'Failed')
		setTimeout(() => setText(words, label), 1500)
	}
	return el
}
