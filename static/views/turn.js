import { answerOf, changedPaths, explores, promptParts } from '../transcript.js'
import { titleOf } from './calltitle.js'
import { copyButton } from './code.js'
import { testsOf } from './command.js'
import { guard, h, icon, iconButton, refill, say, setText, template, uid, View, word } from './dom.js'
import { compact, dotted, duration, money, plural } from './format.js'
import { menuButton } from './menu.js'
import { MessageView, promptBubble, ThoughtView } from './messages.js'
import { NoteView, PlanView, RawView, rawView } from './notes.js'
import { QuestionView } from './question.js'
import { ToolView } from './tool.js'

const VIEWS = {
	message: MessageView,
	user: MessageView,
	thought: ThoughtView,
	tool: ToolView,
	plan: PlanView,
	note: NoteView,
	question: QuestionView
}
const CHUNK = 24
const LIVELY = 60
export const LONG = 24 // items; in a longer turn, finished calls fold

// Folds consecutive reads and searches to one line; those that failed or wait stay visible
function place(chunk, item, el) {
	let last = chunk.lastChild
	if (!explores(item) || !last?.explores) chunk.append(el)
	else {
		if (!last.count) {
			const { el: group, line, count } = template('group')
			line.onclick = () => (line.ariaExpanded = String(group.classList.toggle('open')))
			last.replaceWith(group)
			group.append(last)
			last = Object.assign(group, { count })
		}
		last.append(el)
		setText(
			last.count,
			`Explored ${plural(last.children.length - 1, last.querySelector('[data-kind=read]') ? 'file' : 'place')}`
		)
		el = last
	}
	el.explores = explores(item)
}

/** @type {(item: Item, context: Props, live?: boolean) => Props} the view of an item; `context` has those of all items */
export function buildItem(item, context, live) {
	const view = guard(
		() => new (VIEWS[item.kind] ?? RawView)(item, context, live),
		() => rawView(item.kind, item)
	)
	context.views.set(item, view)
	return view
}

export class TurnView extends View {
	constructor(turn, context, later) {
		super('turn', { turn, context })
		this.from = this.to = later ? turn.items.length : 0
		this.el.setAttribute('aria-labelledby', (this.heading.id = uid()))
		this.update()
	}

	update() {
		const { turn, head, foot } = this
		this.el.hidden = Boolean(turn.elsewhere)
		if (turn.elsewhere) return refill(this.el)
		if (turn.prompt && !head.firstChild)
			guard(
				() => this.#head(turn),
				() => refill(head, rawView('turn_start', turn.prompt).el)
			)
		guard(
			() => this.#foot(),
			() => refill(foot, rawView('turn_end', { ...turn, items: undefined }).el)
		)
	}

	#head({ prompt, context }) {
		setText(this.heading, `You: ${promptParts(prompt).text.slice(0, 80) || 'files'}`)
		if (context === 'lost')
			this.head.append(
				new NoteView({
					note: 'warning',
					title: say('the_agent_2')
				}).el
			)
		this.head.append(promptBubble(prompt))
	}

	append(enough) {
		const { items } = this.turn
		for (; this.to < items.length && !enough(); this.to += 1) {
			let chunk = this.body.lastChild
			if (!chunk || chunk.childElementCount >= CHUNK) {
				chunk?.classList.add('settled')
				chunk = this.body.appendChild(h('div.chunk'))
			}
			place(chunk, items[this.to], this.context.build(items[this.to], true).el)
			if (this.to === LONG) for (const item of items.slice(0, LONG)) this.context.again(item)
		}
		return this.to >= items.length
	}

	prepend(count) {
		const { items } = this.turn
		const first = Math.max(0, this.from - count)
		const older = items.slice(first, this.from)
		const live = this.context.isLast(this.turn) && items.length < LIVELY
		const chunk = h('div.chunk.settled')
		for (const item of older) place(chunk, item, this.context.build(item, live).el)
		if (older.length) this.body.prepend(chunk)
		this.from = first
	}

	tick(now) {
		if (this.elapsed && !this.context.away()) setText(this.elapsed, duration(Math.max(1000, now - this.turn.startedAt)))
	}

	#foot() {
		const { turn, context } = this
		const running = turn.status === 'running'
		const waits = running && context.waits(turn)
		const away = running && context.away()
		const tool = running && [...turn.open].at(-1)
		const now = tool ? `now: ${titleOf(tool)}` : 'Working'
		const shown = running ? `running ${waits} ${away} ${now}` : `${turn.stopReason} ${turn.files}`
		if (shown === this.shown || (!running && context.draws(turn))) return
		this.shown = shown
		this.elapsed = running && !away ? h('span') : null
		if (away) refill(this.foot, template('away').el)
		else if (running)
			refill(
				this.foot,
				h(
					'p.facts.working',
					{ 'data-waits': String(waits) },
					h('span.spinner'),
					h('span.ellipsis', { text: waits ? 'Waiting for you' : now }),
					this.elapsed
				)
			)
		else if (turn.stopReason) refill(this.foot, ...this.#ending(), this.#facts())
	}

	#ending() {
		const { stopReason, error, failure, withdrawn } = this.turn
		const ending = withdrawn ? 'withdrawn' : stopReason
		const words = word('ending', ending)
		if (!words) return []
		const action = word('again', ending)
		const edit = () => this.context.edit(this.turn)
		const retry = ({ currentTarget }) => {
			currentTarget.disabled = true
			this.context.retry(this.turn)
		}
		const login = error?.code === 'login_required' && iconButton('secondary.again', 'key', 'Log in', this.context.login)
		const again =
			action &&
			(!error || error.retryable || login) &&
			h(
				withdrawn ? 'button.quiet' : 'button.secondary.again',
				{ onclick: withdrawn ? edit : retry },
				icon(withdrawn ? 'pencil' : 'refresh'),
				action
			)
		const what = failure === null ? (word('error', error?.code) ?? words) : say('the_agent_3')
		const details = [error?.message, !error?.message.includes(failure) && failure].map(
			text => text && h('p', { dir: 'auto', text })
		)
		const mark = icon(word('mark', ending))
		return [h('div.ending', { 'data-reason': stopReason }, mark, h('div.grow', {}, what, details), login, again)]
	}

	#facts() {
		this.el.classList.toggle('withdrawn', Boolean(this.turn.withdrawn))
		const { startedAt, durationMs, usage } = this.turn
		const files = this.turn.files ?? changedPaths(this.turn).size
		const words = dotted([
			files > 0 && `${plural(files, 'file')} changed`,
			testsOf(this.turn),
			durationMs && duration(durationMs),
			usage?.totalTokens && `${compact(usage.totalTokens)} tokens`,
			money(usage?.cost)
		])
		return h(
			'p.facts',
			{ title: new Date(startedAt).toLocaleString() },
			words,
			answerOf(this.turn) && copyButton(() => answerOf(this.turn), 'Copy answer'),
			this.turn.prompt && this.#more()
		)
	}

	// There may be thousands of turns: a menu is built when it is first opened
	#more() {
		const more = h('button.quiet.copy', { label: say('more_for') }, icon('more'))
		const place = h('span.menu-box', {}, more)
		more.onclick = () => {
			more.onclick = null
			place.replaceWith(menuButton(more, () => this.context.entries(this.turn)))
		}
		return place
	}
}
