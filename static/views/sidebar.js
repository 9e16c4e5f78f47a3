import { nameOf } from '../list.js'
import { spell } from '../marks.js'
import { guard, h, leadTo, say, setChildren, setText, template, uid, View, word } from './dom.js'
import { ago, dotted } from './format.js'
import { choice, menuButton } from './menu.js'

const SHOWN = 200 // rows, before "Show more"

export class Sidebar extends View {
	constructor(on) {
		super('sidebar', {
			on,
			rows: new Map(),
			headings: {},
			sessions: null,
			shown: [],
			marked: null,
			limit: SHOWN,
			choice: { by: 'time', ...on.choice }
		})
		this.find.oninput = () => {
			this.#mark(0)
		}
		this.find.onfocus = () => this.#mark(0)
		this.find.onblur = () => this.#mark(null)
		this.find.onkeydown = event => this.#key(event)
		this.find.setAttribute('aria-controls', (this.list.id = uid()))
		this.skip.onclick = on.skip
		this.hide.onclick = on.hide
		this.begin.onclick = () => on.open(null)
		this.palette.onclick = () => on.palette()
		this.board.onclick = () => on.view('board')
		this.foot.append(menuButton(this.settings, on.menu))
		this.search.append(menuButton(this.sort, () => this.#sorting()))
		this.older = h('button.quiet.wide.older', { onclick: () => this.#older(), text: 'Show more' })
		this.said = h('button.quiet.wide.older', { onclick: () => on.palette(this.find.value), text: say('said_in') })
	}

	focus() {
		this.find.select()
	}

	update(sessions, place) {
		Object.assign(this, { sessions, place })
		this.#draw()
	}

	#sorting() {
		const { by, archived } = this.choice
		const choose = changes => {
			this.choice = { ...this.choice, ...changes }
			this.on.choose(this.choice)
		}
		return [
			{ heading: say('group') },
			choice('By time', by !== 'project', () => choose({ by: 'time' })),
			choice('By project', by === 'project', () => choose({ by: 'project' })),
			{ heading: 'Show' },
			choice('Current sessions', !archived, () => choose({ archived: false })),
			choice('The archive', Boolean(archived), () => choose({ archived: true }))
		]
	}

	#older() {
		this.limit += SHOWN
		if (this.sessions.length < this.limit) this.on.more()
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

	#draw() {
		if (!this.sessions) return
		this.find.removeAttribute('aria-activedescendant')
		const wanted = this.find.value.trim().toLowerCase()
		const all = this.sessions
			.filter(
				({ title, agent, id, project, archived }) =>
					(wanted || Boolean(archived) === Boolean(this.choice.archived)) &&
					`${title} ${agent} ${id} ${project ?? ''}`.toLowerCase().includes(wanted)
			)
			.sort((a, b) => b.at - a.at)
		const groups = Object.entries(Object.groupBy(all, one => this.#groupOf(one))).sort(
			([a], [b]) => orderOf(a) - orderOf(b)
		)
		this.shown = groups.flatMap(([, rows]) => rows).slice(0, this.limit)
		const visible = new Set(this.shown)
		const marked = this.shown[this.marked ?? -1]?.id
		setChildren(this.list, [
			...groups.flatMap(([group, rows]) => {
				const drawn = rows.filter(one => visible.has(one))
				return drawn.length ? [this.#heading(group), ...drawn.map(one => this.#row(one, one.id === marked))] : []
			}),
			...(wanted ? [this.said] : []),
			...(all.length > this.limit || this.place.more ? [this.older] : [])
		])
		this.#keepShown()
		const busy = this.sessions.filter(({ state }) => state === 'running' || state === 'waiting').length
		setText(this.busy, busy || '')
		this.board.ariaCurrent = this.place.view === 'board' ? 'page' : 'false'
		const none = this.choice.archived ? 'The archive is empty.' : say('your')
		setText(this.note, this.shown.length ? '' : wanted ? 'No session matches.' : none)
	}

	// Rows of deleted sessions
	#keepShown() {
		if (this.rows.size <= this.sessions.length + SHOWN) return
		const ids = new Set(this.sessions.map(({ id }) => id))
		for (const id of this.rows.keys()) if (!ids.has(id)) this.rows.delete(id)
	}

	#groupOf({ state, pinned, project, at }) {
		if (state === 'waiting') return TIMES[0]
		if (pinned) return TIMES[1]
		return this.choice.by === 'project' ? (project ?? 'No project') : groupOf(at)
	}

	#heading(group) {
		const { headings } = this
		headings[group] ??= h('h2', {
			title: group.startsWith('/') ? group : null,
			text: group.startsWith('/') ? nameOf(group) : group
		})
		return headings[group]
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

	#fill(row, { id, title, agent, at, state, project }) {
		row.el.dataset.state = state
		setText(row.title, title || 'Untitled')
		const facts = [agent, this.choice.by !== 'project' && project && nameOf(project), at > 0 && ago(at)]
		setText(row.facts, dotted(facts))
		setText(row.spoken, word('state', state) ?? '')
		row.link.ariaCurrent = id === this.place.current ? 'page' : 'false'
		row.more.ariaLabel = spell(`More for ${title || 'this session'}`)
	}

	#newRow(id) {
		const row = template('session-row')
		row.link.id = uid()
		leadTo(row.link, id, () => this.#open(id))
		row.el.append(menuButton(row.more, () => this.on.entries(row.session)))
		return row
	}
}

const TIMES = ['Waiting for you', 'Pinned', 'Today', 'Yesterday', 'This week', 'Earlier']

// Projects keep the order of their newest session; sessions without one come last
const orderOf = group => (group === 'No project' ? TIMES.length : TIMES.includes(group) ? TIMES.indexOf(group) : 2)

function groupOf(at) {
	const day = date => date.setHours(0, 0, 0, 0)
	const days = Math.round((day(new Date()) - day(new Date(at * 1000))) / 86_400_000)
	return TIMES[days <= 0 ? 2 : days === 1 ? 3 : days < 7 ? 4 : 5]
}
