import { guard, oncePerFrame, refill } from './dom.js'
import { rawView } from './notes.js'
import { buildItem, LONG, TurnView } from './turn.js'

const FRAME_BUDGET = 10
const OPEN_BUDGET = 30
const IDLE_BUDGET = 10
const SLICE = 12

export class ConversationView {
	outbox
	scroll
	turns
	constructor(el, context) {
		this.el = el
		;[this.turns, this.outbox] = el.children
		this.draw = oncePerFrame(() => this.#draw())
		this.context = {
			...context,
			build: (item, live) => buildItem(item, this.context, live),
			again: item => {
				this.model.dirty.add(item)
				this.draw()
			},
			isLast: turn => turn === this.model.turns.at(-1),
			isLong: ({ turnIndex }) => this.model.byIndex.get(turnIndex).items.length > LONG,
			draws: turn => [...this.model.dirty].some(({ turnIndex }) => turnIndex === turn.index),
			waits: turn => [...this.model.waiting.values()].some(({ turnIndex }) => turnIndex === turn.index)
		}
	}

	load(model) {
		this.model = model
		model.dirty.clear()
		refill(this.turns)
		this.context.views = new WeakMap()
		this.turnViews = new Map()
		this.first = model.turns.length
		this.#fillFor(OPEN_BUDGET)
		this.#settle()
		this.scroll.toEnd()
		this.#later()
		this.#clock()
	}

	whole() {
		if (!this.model) return
		while (this.#fill());
		while (this.model.dirty.size) this.#draw()
	}

	// The element of that turn, once it is drawn wholly
	async reach(index) {
		const turn = this.model.byIndex.get(index)
		while (this.turnViews.get(turn)?.from !== 0 && this.#fillFor(IDLE_BUDGET)) await new Promise(requestAnimationFrame)
		return this.turnViews.get(turn)?.el
	}

	// False when nothing is left to be drawn
	#fillFor(budget) {
		const until = performance.now() + budget
		let more = true
		while (more && performance.now() < until) more = this.#fill()
		return more
	}

	#fill() {
		const { turns } = this.model
		let view = this.turnViews.get(turns[this.first])
		if (!view?.from) {
			if (this.first === 0) return false
			this.first -= 1
			view = this.#turn(turns[this.first], true)
			this.turns.prepend(view.el)
		}
		view.prepend(SLICE)
		return true
	}

	#turn(turn, later) {
		const view = new TurnView(turn, this.context, later)
		view.el.classList.toggle('settled', later)
		this.turnViews.set(turn, view)
		return view
	}

	#draw() {
		const { model } = this
		const until = performance.now() + FRAME_BUDGET
		const enough = () => performance.now() > until
		for (const thing of [...model.dirty].sort((a, b) => +(b.kind === 'turn') - +(a.kind === 'turn'))) {
			if (enough()) break
			const done = thing.kind !== 'turn' || this.#drawTurn(thing, enough)
			if (done) model.dirty.delete(thing)
			this.#drawItem(thing)
		}
		for (const view of this.turnViews.values()) view.update()
		this.scroll.keep()
		if (model.dirty.size) this.draw()
		this.#clock()
	}

	#drawItem(item) {
		const view = this.context.views.get(item)
		guard(
			() => view?.update(),
			() => {
				const raw = rawView(item.kind, item)
				view.el.replaceWith(raw.el)
				this.context.views.set(item, raw)
			}
		)
	}

	#drawTurn(turn, enough) {
		let view = this.turnViews.get(turn)
		if (!view) {
			if (this.model.turns.indexOf(turn) < this.first) return true
			view = this.#turn(turn, false)
			this.turns.append(view.el)
			this.#settle()
		}
		view.update()
		return view.append(enough)
	}

	#settle() {
		for (const turn of this.model.turns.slice(-4))
			this.turnViews.get(turn)?.el.classList.toggle('settled', turn.status !== 'running' && !this.context.isLast(turn))
	}

	#later() {
		if (this.asked) return
		this.asked = true
		const run = () => {
			this.asked = false
			if (this.#fillFor(IDLE_BUDGET)) this.#later()
		}
		if (globalThis.requestIdleCallback) requestIdleCallback(run, { timeout: 500 })
		else setTimeout(run, 30)
	}

	#clock() {
		if (this.timer || !this.model.running.size) return
		this.timer = setInterval(() => {
			for (const index of this.model.running) this.turnViews.get(this.model.byIndex.get(index))?.tick(Date.now())
			if (this.model.running.size && this.el.isConnected) return
			clearInterval(this.timer)
			this.timer = 0
		}, 1000)
	}
}
