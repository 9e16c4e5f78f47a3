import { h, icon } from './dom.js'
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
			[...queue.keys()],
			[...outbox.values()].map(({ id, state }) => [id, state]),
			away,
			closed
		])
		if (shown === this.shown) return false
		this.shown = shown
		this.root.replaceChildren(
			...[...queue.values()].map((one, index) => this.#queued(one, index)),
			...[...outbox.values()].map(one => this.#sent(one, away, closed))
		)
		return true
	}

	#queued({ turn_index: turn, prompt }, index) {
		return this.#row(
			'queued',
			prompt,
			icon('clock'),
			index ? `Queued: number ${index + 1}` : 'Queued: next',
			button('Take out', () => this.on.withdraw(turn))
		)
	}

	#sent(one, away, closed) {
		if (one.state !== 'failed')
			return this.#row('sending', one.prompt, away ? 'Will be sent when the connection is restored' : 'Sending…')
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
