/** Prompts that are no turns yet: on their way, failed, or queued. */
import { h, icon } from './dom.js';
import { promptBubble } from './messages.js';

export class OutboxView {
	/** `on`: edit(prompt), discard(prompt), resend(prompt), withdraw(turnIndex) */
	constructor(root, on) {
		Object.assign(this, { root, on });
	}

	update(outbox, queue, away, closed) {
		const shown = JSON.stringify([[...queue.keys()], [...outbox.values()].map(({ id, state }) => [id, state]), away, closed]);
		if (shown === this.shown) return false;
		this.shown = shown;
		this.root.replaceChildren(...[...queue.values()].map((one, index) => this.#queued(one, index)), ...[...outbox.values()].map((one) => this.#sent(one, away, closed)));
		return true;
	}

	#queued({ turn_index: turn, prompt }, index) {
		return this.#row('queued', prompt, icon('clock'), index ? `Queued: number ${index + 1}` : 'Queued: next', h('button.quiet', { text: 'Take out', onclick: () => this.on.withdraw(turn) }));
	}

	#sent(one, away, closed) {
		if (one.state !== 'failed') return this.#row('sending', one.prompt, away ? 'Will be sent when the connection is back' : 'Sending…');
		const button = (text, action) => h('button.quiet', { text, onclick: () => action(one) });
		return this.#row('failed', one.prompt, icon('alert'), one.error, button(closed ? 'Send in a new session' : 'Send again', this.on.resend), button('Edit', this.on.edit), button('Discard', this.on.discard));
	}

	#row(state, prompt, ...notes) {
		return h('div.waiting-prompt', { 'data-state': state }, promptBubble(prompt), h('p', { role: 'status' }, notes));
	}
}
