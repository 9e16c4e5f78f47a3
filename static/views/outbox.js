import { promptParts } from '../transcript.js'
import { filled, h, icon, say } from './dom.js'
import { promptBubble } from './messages.js'

const button = (text, onclick) => h('button.quiet', { text, onclick })

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
		this.root.replaceChildren(...[...outbox.values()].map(one => this.#sent(one, away, closed)))
		const { dock } = this.on
		const waiting = [...queue.values()]
		const at = [...dock.querySelectorAll('button')].indexOf(document.activeElement)
		dock.hidden = !waiting.length
		dock.replaceChildren(
			...waiting.map((one, index) => this.#queued(one, waiting[index - 1])),
			waiting.length > 1
				? h(
						'li',
						{},
						button('Clear the queue', () => waiting.map(one => this.on.clear(one)))
					)
				: ''
		)
		if (at >= 0) dock.querySelectorAll('button')[at]?.focus()
		return true
	}

	#queued(one, above) {
		const { turn_index: turn, prompt } = one
		const { on } = this
		const text = promptParts(prompt).text || 'files'
		const { el, now, up, change, take } = filled('queued', { words: text })
		now.onclick = () => on.sendNow(turn)
		if (above) up.onclick = () => on.move(turn, above.turn_index)
		else up.remove()
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
