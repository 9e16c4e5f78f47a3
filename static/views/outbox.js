import { promptParts } from '../transcript.js'
import { filled, h, icon, refill, say } from './dom.js'
import { promptBubble } from './messages.js'

const button = (text, onclick) => h('button.quiet', { text, onclick })
const waitingRow = ({ prompt }) => filled('queued', { words: promptParts(prompt).text || 'files' })

export class OutboxView {
	on
	root
	constructor(root, on) {
		Object.assign(this, { root, on })
	}

	update(outbox, queue, away, closed) {
		const shown = JSON.stringify([
			[...queue.values()],
			[...outbox.values()].map(({ id, state }) => [id, state]),
			away,
			closed
		])
		if (shown === this.shown) return false
		this.shown = shown
		const unsent = [...outbox.values()]
		const paused = unsent.filter(({ state }) => state === 'paused')
		const others = unsent.filter(({ state }) => state !== 'paused')
		refill(this.root, ...others.map(one => this.#sent(one, away, closed)))
		const { dock, clear, discard, resume } = this.on
		const waiting = [...queue.values()]
		const focused = dock.contains(document.activeElement) && document.activeElement
		const row = focused && focused.closest('li').dataset.turn
		const empty = () => {
			waiting.map(clear)
			paused.map(discard)
		}
		const count = waiting.length + paused.length
		dock.hidden = !count
		refill(
			dock,
			...waiting.map((one, index) => this.#queued(one, waiting[index - 1])),
			...paused.map(one => this.#paused(one)),
			paused.length > 0 || count > 1
				? h(
						'li.chips',
						{},
						paused.length > 0 && button('Resume the queue', resume),
						count > 1 && button('Clear the queue', empty)
					)
				: ''
		)
		if (focused) this.#refocus(dock, row, focused.textContent + focused.ariaLabel)
		return true
	}

	// The same button of a prompt that has moved; without it, the next thing that there is
	#refocus(dock, row, words) {
		const all = [...dock.querySelectorAll('button')]
		const own = all.filter(one => one.closest('li').dataset.turn === row)
		const found = own.find(one => one.textContent + one.ariaLabel === words) ?? own[0] ?? all[0]
		if (found) found.focus()
		else this.on.focus()
	}

	#paused(one) {
		const { el, now, up, change, take } = waitingRow(one)
		Object.assign(el.dataset, { state: 'paused', turn: one.id })
		now.replaceWith(h('small', { text: 'Paused' }))
		up.remove()
		change.onclick = () => this.on.edit(one)
		take.onclick = () => this.on.discard(one)
		return el
	}

	#queued(one, above) {
		const { turn_index: turn } = one
		const { on } = this
		const { el, now, up, change, take } = waitingRow(one)
		el.dataset.turn = turn
		now.onclick = () => on.sendNow(turn)
		if (above) up.onclick = () => on.move(turn, above.turn_index)
		else up.style.visibility = 'hidden' // the others stand below each other
		change.onclick = () => on.change(one)
		take.onclick = () => on.withdraw(turn)
		return el
	}

	#sent(one, away, closed) {
		if (one.state !== 'failed') return this.#row('sending', one.prompt, away ? say('will_be') : 'Sending…')
		const { edit, discard, resend } = this.on
		return this.#row(
			'failed',
			one.prompt,
			icon('alert'),
			one.error,
			button(closed ? 'Send in a new session' : 'Send again', () => resend(one)),
			button('Edit', () => edit(one)),
			button('Discard', () => discard(one))
		)
	}

	#row(state, prompt, ...notes) {
		return h('div.waiting-prompt', { 'data-state': state }, promptBubble(prompt), h('p', { role: 'status' }, notes))
	}
}
