import { pretty } from '../normalise.js'
import { codeBlock } from './code.js'
import { h, icon, refill, setText, template, View, word } from './dom.js'

const SHOWN = 50
const MAX_JSON = 200_000

export class PlanView extends View {
	constructor(item) {
		super('plan', { item })
		this.update()
	}

	update() {
		const { entries } = this.item
		setText(this.count, `${entries.filter(({ status }) => status === 'completed').length} of ${entries.length}`)
		while (this.list.children.length > entries.length) this.list.lastChild.remove()
		for (const [index, { content, status }] of entries.entries()) {
			const row = this.list.children[index] ?? this.list.appendChild(template('plan-step').el)
			const [mark, words, spoken] = row.children
			if (row.dataset.status !== status) refill(mark, status === 'completed' ? icon('check') : '')
			row.dataset.status = status
			setText(words, content)
			setText(spoken, ` (${word('plan', status) ?? status})`)
		}
	}
}

export class NoteView {
	constructor({ note, title, text = '' }) {
		const name = { __proto__: null, warning: 'alert', error: 'alert', mode: 'swap' }[note] ?? 'info'
		this.el = h('p.note.hint', { 'data-note': note }, icon(name), h('span', { dir: 'auto', text: `${title} ${text}` }))
	}

	update() {}
}

export const rawView = (name, data) => new RawView({ name, count: 1, data: [data] })

export class RawView extends View {
	constructor(item) {
		super('raw', { item })
		this.el.ontoggle = () => this.update()
		this.update()
	}

	update() {
		const { name, count, data } = this.item
		setText(this.label, count > 1 ? `${name} × ${count}` : name)
		if (!this.el.open || this.filled === count) return
		this.filled = count
		refill(
			this.box,
			codeBlock(
				data
					.slice(0, SHOWN)
					.map(one => pretty(one, MAX_JSON / Math.min(data.length, SHOWN)))
					.join('\n'),
				'json'
			).el,
			count > SHOWN ? `and ${count - SHOWN} more` : ''
		)
	}
}
