// Suggestions at a text field: the agent's commands after a slash, and files after an @
import { h, icon, markOption, refill, uid } from './dom.js'

const SHOWN = 100

export class Suggestions {
	el
	input
	on
	/** @param {Props} on commands(), paths(typed), and take(from, text, path) for the chosen one */
	constructor(el, input, on) {
		Object.assign(this, { el, input, on, options: [] })
		el.id = uid()
		input.setAttribute('aria-controls', el.id)
		input.addEventListener('blur', () => this.#show([]))
	}

	update() {
		const { value, selectionStart: caret } = this.input
		const before = value.slice(0, caret)
		const [, command] = (caret === value.length && /^\/(\S*)$/.exec(before.toLowerCase())) || []
		const [, path] = /(?:^|[\s(])@([^\s@]*)$/.exec(before) ?? []
		this.wanted = path
		if (command !== undefined) this.#show(this.#commands(command), 'Commands')
		else if (path === undefined || !this.on.paths) this.#show([])
		else this.#findPaths(path, caret - path.length - 1)
	}

	#commands(typed) {
		const at = ({ name }) => name.toLowerCase().indexOf(typed)
		return this.on
			.commands()
			.filter(command => at(command) >= 0)
			.sort((a, b) => at(a) - at(b))
			.map(({ name, description, hint }) => ({
				text: `/${name}`,
				from: 0,
				nodes: [
					h('code', { text: `/${name}` }),
					h('span.ellipsis', { text: [description, hint && `(${hint})`].filter(Boolean).join(' ') })
				]
			}))
	}

	async #findPaths(typed, from) {
		const found = await this.on.paths(typed).catch(() => [])
		if (typed !== this.wanted) return
		const options = found.map(one => {
			const cut = one.path.lastIndexOf('/') + 1
			const folder = one.type === 'directory'
			return {
				text: `@${one.path}${folder ? '/' : ''}`,
				from,
				path: !folder && one,
				folder,
				nodes: [
					icon(folder ? 'folder' : 'file'),
					h('span', { text: one.path.slice(cut) }),
					h('small.ellipsis', { text: one.path.slice(0, cut) })
				]
			}
		})
		this.#show(options, 'Files')
	}

	/** @type {(options: Props[], label?: string) => void} */
	#show(options, label = '') {
		this.options = options = options.slice(0, SHOWN)
		this.el.hidden = !options.length
		this.el.ariaLabel = label
		const rows = options.map(({ nodes }, index) => {
			const props = {
				role: 'option',
				id: `${this.el.id}-${index}`,
				onpointerdown: event => event.preventDefault(),
				onclick: () => this.#choose(index)
			}
			return h('li', props, nodes)
		})
		refill(this.el, ...rows)
		this.#mark(0)
	}

	#mark(index) {
		const row = this.el.children[index]
		this.marked = index
		markOption(this.input, this.el.children, row)
	}

	#choose(index) {
		const { text, from, path, folder } = this.options[index]
		this.#show([])
		this.on.take(from, folder ? text : `${text} `, path)
	}

	key(event) {
		const { options, marked } = this
		const { length } = options
		if (!length) return false
		const step = { ArrowDown: 1, ArrowUp: length - 1 }[event.key]
		const enter = event.key === 'Enter' && !event.shiftKey
		// A command that is complete is sent
		const { text, path } = options[marked]
		if (enter && path === undefined && this.input.value === text) return false
		if (step) this.#mark((marked + step) % length)
		else if (enter || event.key === 'Tab') this.#choose(marked)
		else if (event.key === 'Escape') this.#show([])
		else return false
		event.preventDefault()
		return true
	}
}
