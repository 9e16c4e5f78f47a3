// Sessions with the same prompt, compared by their results
import { spell } from '../marks.js'
import { record } from '../normalise.js'
import { answerOf, promptParts } from '../transcript.js'
import { counts } from './diff.js'
import { filled, h, say, setChildren, setText } from './dom.js'
import { compact, dotted, duration, money, plural } from './format.js'
import { MarkdownView } from './markdown.js'
import { PanelPage, pill } from './panel.js'

const FILES = 30
const LONG = 500 // characters

export class ComparePanel extends PanelPage {
	constructor(app) {
		super(app, 'Compare')
		this.cards = new Map()
		this.asked = h('p.lede.plain', { dir: 'auto' })
		this.grid = h('div.compare')
		this.body.append(this.asked, this.grid)
	}

	update() {
		const { app } = this
		const states = [...app.list.states.values()].filter(({ meta }) => record(meta).compare === app.group)
		const results = states
			.sort((a, b) => a.created_at - b.created_at)
			.map(({ session_id: id }) => resultOf(app.openSession(id).session))
		setText(this.asked, results[0] ? promptParts(results[0].turn.prompt).text.slice(0, 300) : say('not_compared'))
		const ended = results.length > 1 && results.every(({ done }) => done)
		const least = name => ended && Math.min(...results.map(one => one[name] || Infinity))
		const [fastest, cheapest] = [least('ms'), least('amount')]
		setChildren(
			this.grid,
			results.map(one => this.#card(one, [one.ms === fastest && 'fastest', one.amount === cheapest && 'cheapest']))
		)
	}

	#card(result, best) {
		const { session, state, facts, answer, files } = result
		const shown = JSON.stringify([state, facts, answer, files, best])
		const known = this.cards.get(session.id)
		if (known?.shown === shown) return known.el
		const title = `${session.agent}${session.state?.model ? ` · ${session.state.model}` : ''}`
		const {
			el,
			open,
			answer: box,
			unfold,
			list
		} = filled('compared', { title, facts, files: files.length ? plural(files.length, 'file') : '' })
		el.dataset.state = state
		el.ariaLabel = box.ariaLabel = title
		open.before(...best.filter(Boolean).map(words => pill('ok', words)))
		open.onclick = () => this.app.go(session.id)
		if (state === 'waiting') setText(open, 'Answer')
		unfold.hidden = answer.length < LONG
		unfold.onclick = () => el.classList.add('whole')
		box.append(answer ? new MarkdownView(answer).el : '')
		list.append(...files.slice(0, FILES).map(fileRow))
		this.cards.set(session.id, { el, shown })
		return el
	}
}

function fileRow({ path, additions, deletions }) {
	const view = filled('compared-file', { name: path })
	view.name.title = spell(path)
	if (additions != null) counts(view, additions, deletions)
	return view.el
}

function resultOf(session) {
	const { model, running, waiting, changed } = session
	/** @type {Props} */
	const turn = model.turns[0] ?? { prompt: '', items: [] }
	const { amount } = turn.usage?.cost ?? {}
	const done = Boolean(turn.stopReason)
	const facts = [
		waiting ? 'waits for you' : !done ? 'working' : turn.stopReason !== 'end_turn' && turn.stopReason,
		duration(turn.durationMs ?? 0),
		turn.usage?.totalTokens && `${compact(turn.usage.totalTokens)} tokens`,
		money(turn.usage?.cost)
	]
	return {
		session,
		turn,
		done,
		ms: turn.durationMs,
		amount,
		files: changed,
		answer: done ? answerOf(turn) || turn.error?.message || 'No answer.' : '',
		state: waiting ? 'waiting' : running ? 'running' : 'finished',
		facts: dotted(done ? facts : facts.slice(0, 1))
	}
}
