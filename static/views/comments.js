// Comments on lines of the changes, which are sent as one prompt
import { h, setText, template } from './dom.js'
import { plural } from './format.js'

export class Comments {
	/** @param {Props[]} saved @param {(items: Props[]) => void} onchange */
	constructor(saved, onchange) {
		this.items = new Map((saved ?? []).map(one => [one.key, one]))
		this.buttons = new Map()
		this.fields = new Map()
		this.onchange = onchange
	}

	// Comments with words, in the order of the files and lines
	get written() {
		const order = (a, b) => (a.path === b.path ? a.line - b.line : a.path < b.path ? -1 : 1)
		return [...this.items.values()].filter(({ text }) => text.trim()).sort(order)
	}

	get prompt() {
		return this.written
			.map(({ path, line, sign, code, text }) => `${path}, line ${line}:\n> ${sign} ${code}\n${text.trim()}`)
			.join('\n\n')
	}

	clear() {
		this.items.clear()
		this.onchange([])
	}

	// The parts of a row of that file
	of(path) {
		const keyOf = ({ sign, line }) => `${path} ${sign}${line}`
		return {
			number: row => {
				const button = h('button.no', {
					'data-no': row.line,
					label: `Comment on line ${row.line}`,
					tabIndex: -1,
					onclick: () => this.#open(button, keyOf(row), { ...row, path })
				})
				this.buttons.set(keyOf(row), button)
				return button
			},
			box: row => this.items.has(keyOf(row)) && this.#box(keyOf(row))
		}
	}

	#open(button, key, { path, line, sign, text }) {
		const row = button.closest('.pair') ?? button.parentElement
		if (!this.items.has(key)) {
			this.items.set(key, { key, path, line, sign, code: text.slice(0, 500), text: '' })
			row.after(this.#box(key))
		}
		this.fields.get(key).focus()
	}

	#box(key) {
		const item = this.items.get(key)
		const { el, field, remove } = template('comment')
		const number = () => this.buttons.get(key)
		const drop = () => {
			this.items.delete(key)
			number()?.focus()
			el.remove()
			this.onchange(this.written)
		}
		field.ariaLabel = `Comment on line ${item.line}`
		field.value = item.text
		this.fields.set(key, field)
		field.oninput = () => {
			item.text = field.value
			this.onchange(this.written)
		}
		field.onkeydown = event => {
			if (event.key !== 'Escape' || event.isComposing) return
			event.preventDefault()
			if (field.value.trim()) number()?.focus()
			else drop()
		}
		remove.onclick = drop
		return el
	}
}

// The arrow keys lead from line to line
export function moveByKeys(body) {
	const numbers = () => [...body.querySelectorAll('button.no')]
	const [first] = numbers()
	if (first) first.tabIndex = 0
	body.onkeydown = event => {
		const all = numbers()
		const at = all.indexOf(document.activeElement)
		const next = all[at + ({ ArrowDown: 1, ArrowUp: -1 }[event.key] ?? all.length)]
		if (at < 0 || !next) return
		event.preventDefault()
		all[at].tabIndex = -1
		next.tabIndex = 0
		next.focus()
	}
}

export function showCount(button, words, count) {
	button.hidden = !count
	setText(words, `Send ${plural(count, 'comment')}`)
}
