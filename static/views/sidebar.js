import { spell } from '../marks.js'
import { guard, h, setChildren, setText, template, uid, View, word } from './dom.js'
import { ago } from './format.js'
import { menuButton } from './menu.js'

export class Sidebar extends View {
	constructor(on) {
		super('sidebar', {
			on,
			rows: new Map(),
			headings: {},
			sessions: null,
			shown: [],
			marked: null
		})
		this.find.oninput = this.find.onfocus = () => this.#mark(0)
		this.find.onblur = () => this.#mark(null)
		this.find.onkeydown = event => this.#key(event)
		this.find.setAttribute('aria-controls', (this.list.id = uid()))
		this.skip.onclick = on.skip
		this.hide.onclick = on.hide
		this.begin.onclick = () => on.open(null)
		this.el.append(menuButton(this.settings, on.menu))
		const { el, box } = template('with-closed')
		box.onchange = () => on.withClosed(box.checked)
		this.withClosed = el
	}

	focus() {
		this.find.select()
	}

	update(sessions, current) {
		Object.assign(this, { sessions, current })
		this.#draw()
	}

	#key(event) {
		const { key, isComposing, keyCode } = event
		if (isComposing || keyCode === 229) return
		const step = { ArrowDown: 1, ArrowUp: -1 }[key]
		if (step) this.#mark(Math.max(0, Math.min(this.shown.length - 1, this.marked + step)))
		else if (key === 'Enter') this.#open(this.shown[this.marked]?.id)
		else if (key === 'Escape') {
			this.#clear()
			this.on.hide()
			this.on.skip()
		} else return
		event.preventDefault()
	}

	#open(id) {
		if (id === undefined) return
		this.#clear()
		this.on.open(id)
	}

	#clear() {
		this.find.value = ''
		this.#mark(null)
	}

	#mark(index) {
		this.marked = index
		this.#draw()
		if (index !== null) this.rows.get(this.shown[index]?.id)?.el.scrollIntoView({ block: 'nearest' })
	}

	fail(message) {
		setText(this.note, message)
	}

	#draw() {
		if (!this.sessions) return
		this.find.removeAttribute('aria-activedescendant')
		const wanted = this.find.value.trim().toLowerCase()
		const shown = this.sessions
			.filter(({ title, agent, id }) => `${title} ${agent} ${id}`.toLowerCase().includes(wanted))
			.sort((a, b) => b.at - a.at)
		this.shown = shown
		const marked = shown[this.marked ?? -1]?.id
		const groups = Object.groupBy(shown, ({ at }) => groupOf(at))
		setChildren(this.list, [
			...Object.entries(groups).flatMap(([group, rows]) => [
				(this.headings[group] ??= h('h2', { text: group })),
				...rows.map(one => this.#row(one, one.id === marked))
			]),
			this.withClosed
		])
		setText(this.note, shown.length ? '' : wanted ? 'No session matches.' : 'Your sessions will be listed here.')
	}

	#row(session, marked) {
		const { id } = session
		if (!this.rows.has(id)) this.rows.set(id, this.#newRow(id))
		const row = this.rows.get(id)
		row.session = session
		guard(() => this.#fill(row, session))
		row.el.classList.toggle('marked', marked)
		if (marked) this.find.setAttribute('aria-activedescendant', row.link.id)
		return row.el
	}

	#fill(row, { id, title, agent, at, state }) {
		row.el.dataset.state = state
		setText(row.title, title || 'Untitled')
		setText(row.facts, `${agent} · ${ago(at)}`)
		setText(row.spoken, word('state', state) ?? '')
		row.link.ariaCurrent = id === this.current ? 'page' : 'false'
		row.more.ariaLabel = spell(`More for ${title || 'this session'}`)
	}

	#newRow(id) {
		const row = template('session-row')
		row.link.href = `#session=${id}`
		row.link.id = uid()
		row.link.onclick = event => {
			if (event.ctrlKey || event.metaKey || event.shiftKey) return
			event.preventDefault()
			this.#open(id)
		}
		row.el.append(menuButton(row.more, () => this.on.entries(row.session)))
		return row
	}
}

function groupOf(at) {
	const day = date => date.setHours(0, 0, 0, 0)
	const days = Math.round((day(new Date()) - day(new Date(at * 1000))) / 86_400_000)
	return days <= 0 ? 'Today' : days === 1 ? 'Yesterday' : days < 7 ? 'This week' : 'Earlier'
}
