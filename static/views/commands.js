import { h, uid } from './dom.js'

const SHOWN = 100

export class CommandList {
	commands
	el
	input
	take
	constructor(el, input, commands, take) {
		Object.assign(this, { el, input, commands, take, matches: [] })
		el.id = uid()
		input.setAttribute('aria-controls', el.id)
		input.addEventListener('blur', () => this.#show([]))
	}

	update() {
		const { value, selectionStart } = this.input
		const [, typed] = (selectionStart === value.length && /^\/(\S*)$/.exec(value.toLowerCase())) || []
		const at = ({ name }) => name.toLowerCase().indexOf(typed)
		this.#show(
			this.commands()
				.filter(command => at(command) >= 0)
				.sort((a, b) => at(a) - at(b))
		)
	}

	#show(matches) {
		this.matches = matches = matches.slice(0, SHOWN)
		this.el.hidden = !matches.length
		this.el.replaceChildren(
			...matches.map(({ name, description, hint }, index) => {
				const props = {
					role: 'option',
					id: `${this.el.id}-${index}`,
					onpointerdown: event => event.preventDefault(),
					onclick: () => this.#choose(index)
				}
				return h(
					'li',
					props,
					h('code', { text: `/${name}` }),
					h('span.ellipsis', { text: [description, hint && `(${hint})`].filter(Boolean).join(' ') })
				)
			})
		)
		this.#mark(0)
	}

	#mark(index) {
		const row = this.el.children[index]
		this.marked = index
		for (const one of this.el.children) one.ariaSelected = one === row
		this.input.setAttribute('aria-activedescendant', row?.id ?? '')
		row?.scrollIntoView({ block: 'nearest' })
	}

	#choose(index) {
		this.take(`/${this.matches[index].name} `)
		this.#show([])
	}

	key(event) {
		const { matches, marked } = this
		const { length } = matches
		if (!length) return false
		const step = { ArrowDown: 1, ArrowUp: length - 1 }[event.key]
		const enter = event.key === 'Enter' && !event.shiftKey
		if (enter && this.input.value === `/${matches[marked].name}`) return false
		if (step) this.#mark((marked + step) % length)
		else if (enter || event.key === 'Tab') this.#choose(marked)
		else if (event.key === 'Escape') this.#show([])
		else return false
		event.preventDefault()
		return true
	}
}
