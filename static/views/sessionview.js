import { nameOf, projectOf } from '../list.js'
import { spell } from '../marks.js'
import { record } from '../normalise.js'
import { totals } from '../patch.js'
import { linkTo, Paths } from '../paths.js'
import { titleOf } from './calltitle.js'
import { Composer, dropTarget } from './composer.js'
import { ConversationView } from './conversation.js'
import { guard, oncePerFrame, say, setText, View, word } from './dom.js'
import { compact, dotted, duration, money, plural } from './format.js'
import { menuButton } from './menu.js'
import { OutboxView } from './outbox.js'
import { ScrollKeeper } from './scroll.js'
import { SettingsBar } from './settings.js'

const AWAY_NOTICE_AFTER = 1200 // ms; a shorter loss of the connection is not shown
const LOADING_NOTICE_AFTER = 200 // ms

function flash(el) {
	el.classList.add('visited')
	el.onanimationend = () => el.classList.remove('visited')
}

export class SessionView extends View {
	constructor(session, { on, upload, draft }) {
		super('session', { session, on, awaySince: 0 })
		this.menu.onclick = () => on.showSidebar()
		this.compared.after(menuButton(this.policy, on.policies), menuButton(this.more, on.entries))
		this.pane.onclick = on.closePane
		this.keep.onclick = on.keep
		this.compared.onclick = on.compare
		this.el.addEventListener('focusin', on.focused)
		setText(this.greeting, `A new conversation with ${session.agent}`)

		this.conversation = new ConversationView(this.log, {
			agentName: () => session.agent,
			cwd: () => session.state?.cwd,
			answer: (...answer) => {
				this.scroll.resume()
				return session.wire.answer(...answer)
			},
			away: () => session.wire.status.state === 'stopped' || !this.connection.hidden,
			focusComposer: () => this.focus(),
			seen: () => this.draw(),
			retry: ({ stopReason, prompt }) => this.send({ prompt: stopReason === 'error' ? prompt : 'Continue.' }),
			edit: turn => this.composer.put(turn),
			entries: turn => on.turnEntries(session, turn),
			login: on.login
		})
		this.outbox = new OutboxView(this.conversation.outbox, {
			dock: this.waiting,
			withdraw: turn => session.withdraw(turn),
			resume: () => session.resume(),
			focus: () => this.focus(),
			clear: one => session.cancel(one.turn_index),
			sendNow: turn => session.sendNow(turn),
			move: (turn, before) => session.requeue(turn, { before }),
			change: ({ turn_index: turn }) => {
				const whole = session.waitingPrompt(turn)
				if (!whole) return session.withdraw(turn)
				this.changing = turn
				this.composer.put(whole)
			},
			discard: one => session.discard(one),
			resend: one => this.send(one, () => session.discard(one)),
			edit: one => {
				this.composer.put(one)
				session.discard(one)
			}
		})
		this.draw = oncePerFrame(() => this.#draw())
		this.scroll = this.conversation.scroll = new ScrollKeeper(this.scroller, this.column, this.draw)

		this.paths = new Paths(on.files)
		session.on('changes', () => this.paths.forget())
		this.settings = new SettingsBar((...change) => session.set(...change))
		this.composer = new Composer({
			placeholder: spell(`Message ${session.agent}`),
			upload,
			controls: this.settings.el,
			draft,
			on: {
				send: message => {
					const { changing } = this
					const sent = () => {
						this.changing = null
						this.composer.clear()
					}
					this.send(message, sent, changing)
				},
				stop: () => session.pause(),
				commands: () => session.model.commands ?? [],
				paths: typed => this.paths.find(typed),
				link: entry => linkTo(session.state.cwd, entry),
				history: () => session.history(),
				change: () => this.composer && this.draw()
			}
		})
		this.ended.before(this.composer.el)
		this.jump.onclick = () => this.scroll.toEnd()
		this.connection.lastChild.onclick = () => session.wire.start()
		this.ask.onclick = () => this.showWaiting()
		this.fresh.onclick = on.startNew
		this.review.onclick = on.review
		dropTarget(this.el, files => this.over || this.composer.add(files))
		session.on('withdrawn', sent => this.composer.put(sent))
		this.el.addEventListener('openfile', ({ detail }) => on.openFile(detail))

		session.on('change', () => {
			if (session.synced) this.conversation.draw()
			this.draw()
		})
		session.on('synced', () => {
			this.conversation.load(session.model)
			if (this.sought) this.visitTurn(...this.sought)
		})
		this.loadingShownAt = performance.now() + LOADING_NOTICE_AFTER
		setTimeout(this.draw, LOADING_NOTICE_AFTER)
		this.#draw()
	}

	focus() {
		this.composer.focus()
	}

	get unsent() {
		return !this.composer.empty
	}

	get #cards() {
		const { views } = this.conversation.context
		return [...this.session.model.waiting.values()]
			.map(({ requestId, tool }) => {
				const view = views?.get(tool)
				return view?.asks ? view.asks.get(requestId) : view
			})
			.filter(Boolean)
	}

	// Focuses the next card; false after the last one, unless it may go round
	showWaiting(round = false) {
		const cards = this.#cards
		const at = cards.findIndex(({ el }) => el.contains(document.activeElement))
		const card = cards[round ? (at + 1) % cards.length : at + 1]
		if (card) this.scroll.visit(card.el)
		card?.focus()
		return Boolean(card)
	}

	// A session that was just opened shows its request as soon as it is drawn
	visitWaiting() {
		if (!this.showWaiting()) this.visiting = true
	}

	// To what was said with these words in a turn, as soon as it is drawn
	async visitTurn(index, words) {
		const sought = (this.sought = [index, words])
		if (!this.session.synced) return
		const el = await this.conversation.reach(index)
		if (!el || this.sought !== sought) return
		this.sought = null
		const said = one => words.every(word => one.textContent.toLowerCase().includes(word))
		const found = [...el.querySelectorAll('.bubble, .message')].find(said) ?? el
		this.scroll.leave()
		found.scrollIntoView()
		flash(found)
	}

	// To the previous or the next prompt
	jumpTo(step) {
		const top = this.scroller.getBoundingClientRect().top
		const heads = [...this.log.querySelectorAll('.turn-head')].filter(one => one.firstChild)
		const at = heads.map(one => one.getBoundingClientRect().top - top)
		const found = step < 0 ? at.findLastIndex(one => one < 0) : at.findIndex(one => one > 40)
		if (found < 0) return step < 0 ? (this.scroller.scrollTop = 0) : this.scroll.toEnd()
		this.scroller.scrollTop += at[found] - 16
		this.scroll.leave()
		flash(heads[found].parentElement)
	}

	// One of several sessions on the screen
	setPane(split) {
		this.pane.hidden = !split
	}

	// `changing` is the turn whose prompt waits and is replaced
	send(message, sent = () => {}, changing = null) {
		if (this.over) return void this.#sendAnew(message, sent)
		if (this.session.closed) return void this.#continue(message, sent)
		sent()
		if (this.session.queue.has(changing)) {
			if (!message.files?.length) return this.session.requeue(changing, { prompt: message.prompt })
			this.session.cancel(changing)
		}
		this.session.send({ prompt: message.prompt, files: message.files })
		this.scroll.toEnd()
	}

	async #sendAnew(message, sent) {
		if (this.composer.el.inert) return
		this.composer.el.inert = true
		const done = await this.on.sendAnew(message)
		this.composer.el.inert = false
		if (done) sent()
	}

	// A closed session is opened again, and continues
	async #continue(message, sent) {
		if (this.composer.el.inert) return
		this.composer.el.inert = true
		const failure = await this.on.reopen().then(
			() => null,
			error => error
		)
		this.composer.el.inert = false
		this.refusal = failure && failure.code !== 'conflict' ? failure.message : null
		if (this.refusal) return this.draw()
		this.send(message, sent)
		this.focus()
	}

	// There is nothing to continue
	get over() {
		return this.session.wire.status.code === 4505
	}

	#draw() {
		const { session } = this
		const { status } = session.wire
		const gone = status.code === 4505
		guard(() => this.#head(session, gone))
		guard(() => this.settings.update(session.model))
		guard(() => this.composer.setRunning(session.running))
		const away = guard(() => this.#connection(status))
		guard(() => this.outbox.update(session.outbox, session.queue, away, this.over) && this.scroll.keep())
		const gap = this.connection.hidden
		if (this.gap !== gap && session.synced) this.conversation.draw()
		this.gap = gap
		guard(() => this.#dock(session))
		guard(() => this.#rest(session, gone))
	}

	#head({ title, agent, state, running, model }, gone) {
		setText(this.title, title || (gone ? 'Not found' : 'New session'))
		const silent = state?.asks === false && state.permission !== 'approve-all'
		const folder = state && projectOf({ ...state, session_id: this.session.id })
		const facts = [
			!gone && agent,
			folder && nameOf(folder),
			state?.model,
			!running && !this.session.closed && word('fact', state?.agent_state),
			silent && word('fact', 'silent')
		]
		setText(this.facts, dotted(facts))
		this.compared.hidden = typeof record(state?.meta).compare !== 'string'
		this.policy.hidden = gone || !state?.permission
		const policy = word('permission', state?.permission) ?? ''
		setText(this.policyName, policy)
		this.policy.ariaLabel = `Permissions: ${policy}`
		const { used, size, cost } = model.usage ?? {}
		setText(this.usage, used > 0 ? dotted([compact(used) + (size > 0 ? ` / ${compact(size)}` : ''), money(cost)]) : '')
	}

	#dock({ model, agent, running, changed }) {
		const { size } = model.waiting
		const unseen = this.#cards.find(({ seen }) => seen === false)
		this.jump.hidden = this.scroll.following
		this.ask.hidden = !unseen
		if (unseen)
			setText(this.asked, `${agent} waits for you${size > 1 ? ` (${size})` : ''}: ${titleOf(unseen.request.call)}`)
		const { count, added, removed } = totals(changed)
		this.review.hidden = !count
		const [files, plus, minus] = this.reviewWords.children
		setText(files, plural(count, 'file'))
		setText(plus, `+${added}`)
		setText(minus, removed ? `−${removed}` : null)
		const entries = (running && model.turns.at(-1).plan?.entries) || []
		const step = entries.findIndex(entry => entry.status !== 'completed')
		this.plan.hidden = step < 0
		setText(this.plan.firstChild, `${step + 1} of ${entries.length}`)
		setText(this.plan.lastChild, entries[step]?.content ?? '')
	}

	#rest({ model, state, synced, outbox, queue, closed, agent }, gone) {
		this.composer.el.hidden = this.over && this.composer.empty
		this.composer.setPurpose(this.over ? 'Send in a new session' : closed ? 'Continue this session' : null)
		this.composer.input.placeholder = spell(closed ? `Continue with ${agent}` : `Message ${agent}`)
		this.ended.hidden = !gone && !closed
		const until = Number.isFinite(state?.retention_secs) && state.closed_at + state.retention_secs
		this.keep.hidden = !closed || gone || !until
		this.fresh.hidden = !gone && !this.refusal
		const kept = until ? ` It will be deleted on ${new Date(until * 1000).toLocaleDateString()}.` : ''
		const why = word('closed', model.closed?.reason ?? state?.close_reason) ?? say('this')
		setText(
			this.why,
			gone
				? `${word('stopped', 4505)}${this.composer.empty ? '' : ` ${say('kept')}`}`
				: `${why} ${this.refusal ? `${say('shut')} ${this.refusal}` : `${say('continues')}${kept}`}`
		)
		this.conversation.el.hidden = !synced
		this.loading.hidden = synced || gone || performance.now() < this.loadingShownAt
		this.empty.hidden = !synced || model.turns.length + outbox.size + queue.size > 0
		if (this.visiting && synced && this.#cards.length) {
			this.visiting = false
			this.showWaiting()
		}
	}

	#connection({ state, code, retryAt }) {
		const now = Date.now()
		const stopped = state === 'stopped'
		const away = stopped || state === 'away' || (state === 'connecting' && this.awaySince > 0)
		this.awaySince = away ? this.awaySince || now : 0
		this.connection.hidden =
			!away || code === 4508 || code === 4505 || (!stopped && now - this.awaySince < AWAY_NOTICE_AFTER)
		clearTimeout(this.later)
		if (!away) return false
		if (!stopped) this.later = setTimeout(this.draw, 1000)
		const wait = Math.ceil((retryAt - now) / 1000)
		const [words, button] = this.connection.children
		setText(
			words,
			stopped
				? (word('stopped', code) ?? `The server ended the connection (${code}).`)
				: `${say('lost')}${wait > 1 ? ` in ${duration(wait * 1000)}.` : '…'}`
		)
		setText(button, stopped ? 'Try again' : 'Try now')
		button.hidden = !stopped && !(wait > 2)
		return true
	}
}
