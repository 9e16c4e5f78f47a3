// Takes no focus, so that no key answers by accident
import { pretty } from '../normalise.js';
import { askedFor } from './call.js';
import { codeBlock } from './code.js';
import { guard, h, icon, setText, template, uid } from './dom.js';

const OUTCOME = {
	__proto__: null,
	allow_once: 'Allowed once',
	allow_always: 'Always allowed',
	reject_once: 'Rejected',
	reject_always: 'Always rejected'
};
const BY = {
	__proto__: null,
	policy: 'by the session’s policy',
	timeout: 'nobody answered in time',
	cancel: 'the turn was stopped'
};

export const isOpen = ({ outcome, over }) => !outcome && !over;

export class PermissionView {
	card;
	choices;
	context;
	details;
	el;
	heading;
	note;
	permission;
	result;
	who;
	constructor(permission, context) {
		Object.assign(this, template('permission'), { permission, context, refused: 0 });
		const { card, heading, who, choices, details } = this;
		const { options } = permission;
		this.buttons = options.map(({ kind, name, optionId }, index) => {
			const tone = kind === 'allow_once' ? 'primary' : kind.startsWith('reject') ? 'secondary.reject' : 'secondary';
			return h(
				`button.${tone}`,
				{ onclick: () => this.#choose(optionId) },
				/^allow|^reject/.test(kind) && icon(kind.startsWith('allow') ? 'check' : 'close'),
				h('span', { text: name }),
				h('kbd', { text: index + 1, 'aria-hidden': 'true' })
			);
		});
		if (!options.some(({ kind }) => kind.startsWith('reject')))
			this.buttons.push(h('button.secondary.reject', { onclick: () => this.#choose(null) }, 'Do not allow'));
		setText(who, `${context.agentName()} asks for your permission`);
		choices.append(...this.buttons);
		card.setAttribute('aria-labelledby', (heading.id = uid()));
		card.onkeydown = event => this.#key(event);
		const look = entries => context.seen((this.seen = entries.at(-1).intersectionRatio >= 0.5));
		new IntersectionObserver(look, { threshold: 0.5 }).observe(choices);
		this.draw = () => {
			const whole = () => codeBlock(pretty(permission.call, Infinity), 'json').el;
			const parts = guard(() => askedFor(permission.call, context.cwd()), whole);
			details.append(...[parts].flat(2).filter(Boolean));
		};
	}

	focus() {
		this.buttons[0].focus({ preventScroll: true });
	}

	#choose(optionId) {
		const now = this.context.answer(this.permission.requestId, optionId);
		this.byKey = this.card.querySelector(':focus-visible');
		setText(this.note, now ? 'Sending your answer…' : 'Your answer will be sent when the connection is restored.');
		this.#enable(false);
	}

	#enable(on) {
		for (const button of this.buttons) button.disabled = !on;
	}

	update() {
		const { permission } = this;
		const open = isOpen(permission);
		if (open && this.draw) {
			this.draw();
			this.draw = null;
		}
		if (permission.refused !== this.refused) {
			this.refused = permission.refused;
			this.#enable(true);
			setText(this.note, 'Your answer was not accepted. Please answer again.');
		}
		if (!open) {
			if (this.byKey) this.context.focusComposer();
			this.byKey = null;
			this.details.replaceChildren();
		}
		this.card.hidden = !open;
		setText(this.result, open ? '' : this.#words());
		this.el.hidden = !open && !this.result.textContent;
	}

	#words() {
		const { outcome, by, options } = this.permission;
		const option = options.find(({ optionId }) => optionId === outcome?.optionId);
		if (by === 'policy' && option?.kind.startsWith('allow')) return '';
		return [option ? (OUTCOME[option.kind] ?? option.name) : 'Not allowed', BY[by]].filter(Boolean).join(': ');
	}

	#key(event) {
		const { key, ctrlKey, metaKey, altKey } = event;
		const step = { __proto__: null, ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[key];
		const at = this.buttons.indexOf(document.activeElement);
		if (step && at >= 0) this.buttons.at((at + step) % this.buttons.length).focus();
		else if (/^[1-9]$/.test(key) && !ctrlKey && !metaKey && !altKey) this.buttons[key - 1]?.click();
		else return;
		event.preventDefault();
	}
}
