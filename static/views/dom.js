import { CODE, EXACT, exactPieces, PROSE, pieces, spell, TEXT } from '../marks.js'

const SPELLED = new Set(['label', 'title', 'alt', 'placeholder'])

// h('button.primary', {onclick, label: 'Send'}, icon('up'), 'Send'). Strings are never markup
/** @returns {any} */
export function h(spec, props = {}, ...children) {
	const [tag, ...classes] = spec.split('.')
	const node = document.createElement(tag)
	if (classes.length) node.className = classes.join(' ')
	if (tag === 'button') node.type = 'button'
	for (const [name, value] of Object.entries(props)) {
		if (value == null || value === false) continue
		if (name === 'text') setText(node, value)
		else if (name === 'prose') refill(node, ...nodesOf(value, PROSE))
		else if (name.startsWith('on')) node.addEventListener(name.slice(2), value)
		else if (['value', 'tabIndex', 'checked'].includes(name)) node[name] = value
		else
			node.setAttribute(
				name === 'label' ? 'aria-label' : name,
				value === true ? '' : SPELLED.has(name) ? spell(value) : value
			)
	}
	const shown = children.flat(2).filter(child => child || child === 0)
	node.append(...shown.flatMap(child => (child instanceof Node ? [child] : nodesOf(child))))
	return node
}

const sign = text => h('span.sign-of', { title: say('an_invisible') }, text)

export function nodesOf(text, mode = TEXT) {
	return pieces(String(text ?? ''), mode).map(piece => (typeof piece === 'string' ? piece : sign(piece.sign)))
}
export const codeNodes = text => nodesOf(text, CODE)
// Keeps the order of words of any writing direction
const inOrder = nodes =>
	nodes.flatMap(node =>
		typeof node === 'string'
			? node.split(/([^\0-\x7F]+)/).map((part, index) => (index % 2 ? h('bdi', { text: part }) : part))
			: node
	)
// Many blanks in a row could push the rest out of sight
export const jsonNodes = text =>
	text
		.split(/(?<=\S)( {4,})/)
		.flatMap((piece, index) => (index % 2 ? [sign(`blank ×${piece.length}`)] : inOrder(nodesOf(piece, EXACT))))

export function exactNodes(text) {
	return inOrder(
		exactPieces(text).map(piece => {
			if (typeof piece === 'string') return piece
			return piece.blank ? h('span.blank', { 'data-sign': piece.sign, text: piece.blank }) : sign(piece.sign)
		})
	)
}

export function guard(draw, instead) {
	try {
		return draw()
	} catch (error) {
		console.error(error)
		return instead?.(error)
	}
}

// The content of a <template>
const contentOf = id => /** @type {HTMLTemplateElement} */ (document.getElementById(id)).content

// The sentence of a table in index.html for a value of any type
export const word = (table, value) =>
	contentOf('words').querySelector(`[data-word=${CSS.escape(`${table}.${value}`)}]`)?.textContent

// A sentence of the page itself
export const say = name => word('say', name)

/** @returns {Props} its elements, by their data-part */
export function template(id) {
	const original = contentOf(id).firstElementChild
	for (const place of original.querySelectorAll('i')) place.replaceWith(icon(place.dataset.icon))
	/** @type {Props} */
	const parts = { el: document.importNode(original, true) }
	for (const part of parts.el.querySelectorAll('[data-part]')) parts[part.dataset.part] = part
	return parts
}

/** @returns {Props} the same, with texts in its parts */
export function filled(id, texts) {
	const parts = template(id)
	for (const name in texts) setText(parts[name], texts[name])
	return parts
}

export const hint = text => h('p.hint', { text })

// A button with an icon
/** @type {(spec: string, name: string, words: string, onclick: any, props?: Props) => any} */
export const iconButton = (spec, name, words, onclick, props) =>
	h(`button.${spec}`, { onclick, ...props }, icon(name), words)

/** A view of a template: the template's parts, and `fields`, are its properties. */
export const View = /** @type {any} */ (
	class {
		constructor(id, fields) {
			Object.assign(this, template(id), fields)
		}
	}
)

const icons = new Map()

export function icon(name) {
	if (!icons.has(name)) {
		const all = contentOf('icons').firstElementChild
		const svg = /** @type {Element} */ (all.cloneNode())
		svg.setAttribute('class', name === 'mark' ? 'mark' : `icon icon-${name}`)
		svg.append(all.querySelector(`[data-icon='${name}']`).cloneNode())
		icons.set(name, svg)
	}
	return icons.get(name).cloneNode(true)
}

// Replaces what is in an element
export const refill = (el, ...nodes) => el.replaceChildren(...nodes)

const shownTexts = new WeakMap()

export function setText(node, text) {
	if (shownTexts.get(node) === text) return
	shownTexts.set(node, text)
	refill(node, ...nodesOf(text))
}

export function setChildren(parent, nodes) {
	const kept = new Set(nodes)
	const focused = /** @type {HTMLElement} */ (document.activeElement)
	for (const child of [...parent.childNodes]) if (!kept.has(child)) child.remove()
	for (const [index, node] of nodes.entries())
		if (node !== parent.childNodes[index]) parent.insertBefore(node, parent.childNodes[index] ?? null)
	if (parent.contains(focused)) focused.focus({ preventScroll: true }) // moving an element removes the focus
}

// A link to a session; with a key it opens in another tab, as any link does
export function leadTo(link, id, open) {
	link.href = `#session=${id}`
	link.onclick = event => {
		if (event.ctrlKey || event.metaKey || event.shiftKey) return
		event.preventDefault()
		open()
	}
}

// Of the options of a list, one is marked for the field that keeps the focus
export function markOption(field, options, chosen) {
	for (const one of options) one.ariaSelected = String(one === chosen)
	field.setAttribute('aria-activedescendant', chosen?.id ?? '')
	chosen?.scrollIntoView({ block: 'nearest' })
}

let ids = 0
export const uid = () => `u${(ids += 1)}`

export function toggler(button, body, draw) {
	const toggle = { show, touched: false }
	function show(on) {
		body.hidden = !on
		button.ariaExpanded = on
		draw()
	}
	button.setAttribute('aria-controls', (body.id = uid()))
	button.onclick = () => {
		toggle.touched = true
		show(body.hidden)
	}
	body.hidden = true
	button.ariaExpanded = 'false'
	return toggle
}

export function oncePerFrame(fn) {
	let asked = 0
	const run = () => {
		asked = 0
		fn()
	}
	return () => (asked ||= requestAnimationFrame(run))
}

const nearing = new WeakMap()
let near

export function whenNear(el, fn) {
	near ??= new IntersectionObserver(
		entries => {
			for (const { isIntersecting, target } of entries) {
				if (!isIntersecting) continue
				near.unobserve(target)
				nearing.get(target)()
			}
		},
		{ rootMargin: '600px' }
	)
	nearing.set(el, fn)
	near.observe(el)
}

export async function copyText(text) {
	try {
		await navigator.clipboard.writeText(text)
		return true
	} catch {
		const area = document.body.appendChild(h('textarea.offscreen', { value: text }))
		area.select()
		const done = document.execCommand('copy')
		area.remove()
		return done
	}
}

const loading = new Map()

// A stylesheet of a part that is loaded when it is first needed
export function styles(name) {
	if (!loading.has(name)) {
		const own = /** @type {HTMLScriptElement} */ (document.querySelector('script[type="module"]'))
		const href = new URL(`static/${name}.css${new URL(own.src).search}`, document.baseURI).href
		loading.set(
			name,
			new Promise(resolve => {
				const link = h('link', { rel: 'stylesheet', href, onload: resolve, onerror: resolve })
				document.head.append(link)
			})
		)
	}
	return loading.get(name)
}
