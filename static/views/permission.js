/** The agent asks, with its own options. It never takes the focus: no key answers by accident. */
import { h, setText, template, uid } from './dom.js';

const OUTCOME = { allow_once: 'Allowed once', allow_always: 'Always allowed', reject_once: 'Rejected', reject_always: 'Always rejected' };
const BY = { policy: 'by the session’s policy', timeout: 'nobody answered in time', cancel: 'the turn was stopped' };

export class PermissionView {
	constructor(item, context) {
		Object.assign(this, template('permission'), { item, context, options: item.permission.options });
		const { card, heading, who, choices } = this;
		this.buttons = this.options.map(({ kind, name, optionId }, index) => {
			const tone = kind === 'allow_once' ? 'primary' : kind?.startsWith('reject') ? 'secondary.reject' : 'secondary';
			return h(`button.${tone}`, { onclick: () => this.#choose(optionId) }, name ?? optionId, h('kbd', { text: index + 1, 'aria-hidden': 'true' }));
		});
		setText(who, `${context.agentName()} asks for your permission`);
		choices.append(...this.buttons);
		card.setAttribute('aria-labelledby', (heading.id = uid()));
		card.onkeydown = (event) => this.#key(event);
		const look = (entries) => context.seen((this.seen = entries.at(-1).intersectionRatio >= 0.5));
		new IntersectionObserver(look, { threshold: 0.5 }).observe(card);
	}

	focus() {
		this.buttons[0]?.focus({ preventScroll: true });
	}

	#choose(optionId) {
		const now = this.context.answer(this.item.permission.requestId, optionId);
		this.byKey = this.card.querySelector(':focus-visible');
		setText(this.note, now ? 'Sending your answer…' : 'Your answer goes out as soon as the connection is back.');
		for (const button of this.buttons) button.disabled = true;
	}

	update() {
		const { permission, abandoned } = this.item;
		const open = !permission.outcome && !abandoned;
		// The buttons go away: who used the keys goes on where one types.
		if (!open && this.byKey) this.context.focusComposer();
		if (!open) this.byKey = null;
		this.card.hidden = !open;
		setText(this.result, open ? '' : this.#words(permission));
		this.el.hidden = !open && !this.result.textContent;
	}

	#words({ outcome, by }) {
		const option = this.options.find(({ optionId }) => optionId === outcome?.optionId);
		if (by === 'policy' && option?.kind?.startsWith('allow')) return '';
		return [option ? (OUTCOME[option.kind] ?? option.name) : 'Not allowed', BY[by]].filter(Boolean).join(': ');
	}

	#key(event) {
		const { key, ctrlKey, metaKey, altKey } = event;
		const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[key];
		if (step) this.buttons.at((this.buttons.indexOf(document.activeElement) + step) % this.buttons.length).focus();
		else if (/^[1-9]$/.test(key) && !ctrlKey && !metaKey && !altKey) this.buttons[key - 1]?.click();
		else return;
		event.preventDefault();
	}
}
