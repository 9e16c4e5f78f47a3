// Mission control: what runs, what waits for a person, and what has finished
import { nameOf } from '../list.js'
import { spell } from '../marks.js'
import { record, records, string } from '../normalise.js'
import { titleOfRequest } from './calltitle.js'
import { showDeadline } from './deadline.js'
import { toast } from './dialogs.js'
import { filled, guard, h, icon, iconButton, leadTo, say, setChildren, setText, template } from './dom.js'
import { ago, compact, dotted, duration, money, plural } from './format.js'
import { PanelPage } from './panel.js'

const FINISHED = 12
const GROUPS = [
	['waiting', 'Waiting for you'],
	['running', 'Working'],
	['finished', say('finished')]
]

export class BoardPanel extends PanelPage {
	constructor(app) {
		super(app, 'Board')
		this.tiles = new Map()
		this.headings = {}
		this.bar.append(iconButton('secondary', 'plus', 'New session', () => app.go(null)))
		this.grid = h('div.board')
		this.none = template('board-empty').el
		this.body.append(this.none, this.grid)
		setInterval(() => this.el.isConnected && !this.el.hidden && this.#tick(), 1000)
	}

	update() {
		const { rows, list } = this.app
		const shown = GROUPS.flatMap(([state, name]) => {
			const some = rows.filter(row => row.state === state && !row.archived).sort((a, b) => b.at - a.at)
			const kept = state === 'finished' ? some.slice(0, FINISHED) : some
			return kept.length
				? [this.#heading(name, some.length), ...kept.map(row => this.#tile(row, list.states.get(row.id) ?? {}))]
				: []
		})
		setChildren(this.grid, shown)
		this.none.hidden = shown.length > 0
		this.#tick()
	}

	#heading(name, count) {
		const heading = (this.headings[name] ??= h('h2', {}, h('span', { text: name }), h('small')))
		setText(heading.lastChild, String(count))
		return heading
	}

	#tile(row, state) {
		const { id, title, agent, project, state: status } = row
		const asks = records(state.pending_permissions)
		const questions = records(state.pending_elicitations)
		const shown = JSON.stringify([
			row.title,
			status,
			asks.map(one => one.request_id),
			questions.length,
			state.queued?.length,
			state.turn_index
		])
		const tile = this.tiles.get(id)
		if (tile?.shown === shown) return tile.el
		const { el, link, time, note, open, stop } = template('tile')
		el.dataset.state = status
		el.ariaLabel = spell(title || 'Untitled')
		leadTo(link, id, () => this.app.go(id))
		setText(link, title || 'Untitled')
		setText(note, dotted([agent, project && nameOf(project), ...facts(state)]))
		note.after(
			...asks.map(one => guard(() => this.#ask(id, one)) ?? ''),
			questions.length
				? h('p.tile-ask', {}, icon('info'), h('span.grow', { text: `${agent} asks you: ${words(questions[0])}` }))
				: ''
		)
		const runs = status === 'running'
		open.hidden = !runs && !questions.length
		setText(open, questions.length ? 'Answer' : 'Open')
		open.onclick = () => this.app.go(id)
		stop.hidden = !runs
		stop.onclick = () => this.#stop(stop, id)
		this.tiles.set(id, { el, shown, time, state, row })
		if (tile?.el.contains(document.activeElement)) queueMicrotask(() => el.querySelector('button, a')?.focus())
		return el
	}

	#ask(id, { request_id: requestId, request, expires_at: expiresAt }) {
		const call = record(record(request).toolCall)
		const options = records(record(request).options).filter(one => typeof one.optionId === 'string')
		const about = titleOfRequest(request)
		const run = string(record(call.rawInput).command)
		const texts = { title: about || 'Permission', command: run.slice(0, 2000) }
		const { el, command, due, choices, deny, details } = filled('tile-ask', texts)
		const send = async option => {
			const all = el.querySelectorAll('button')
			for (const one of all) one.disabled = true
			try {
				await this.app.api.answer(id, requestId, option)
			} catch (error) {
				if (error.status !== 404) toast(error.message)
				for (const one of all) one.disabled = false
			}
		}
		command.hidden = !run || run === call.title
		due.dataset.at = expiresAt
		const buttons = options.map(({ optionId, name, kind }) =>
			iconButton(
				kind === 'allow_once' ? 'primary' : 'secondary',
				/^allow/.test(kind) ? 'check' : 'close',
				h('span', { text: name }),
				() => send(optionId),
				{ label: `${name}: ${about}` }
			)
		)
		choices.prepend(...buttons)
		deny.hidden = options.some(({ kind }) => /^reject/.test(kind))
		deny.onclick = () => send(null)
		details.onclick = () => this.app.go(id)
		return el
	}

	async #stop(button, id) {
		button.disabled = true
		await this.app.actions.attempt(() => this.app.api.call('POST', `/sessions/${id}/cancel`))
		button.disabled = false
	}

	#tick() {
		const now = Date.now()
		for (const { time, state, row, el } of this.tiles.values()) {
			if (!el.isConnected) continue
			const since = now / 1000 - (state.last_turn_at ?? row.at)
			setText(
				time,
				row.state === 'finished'
					? ago(row.at)
					: since > 0 && since < 1e6
						? duration(Math.max(1, Math.floor(since)) * 1000)
						: ''
			)
			for (const one of el.querySelectorAll('.due')) showDeadline(one, Number(one.dataset.at), now)
		}
	}
}

const words = ({ request }) => (typeof request?.message === 'string' ? request.message.slice(0, 200) : 'a question')

function facts({ turn_count: turns, queued, usage }) {
	const tokens = (usage?.input_tokens ?? 0) + (usage?.output_tokens ?? 0)
	return [
		turns > 0 && plural(turns, 'turn'),
		queued?.length > 0 && `${queued.length} queued`,
		tokens > 0 && `${compact(tokens)} tokens`,
		money(usage?.cost)
	]
}
