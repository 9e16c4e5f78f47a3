/**
 * attention.js: the tab's title and icon, a notification, and what a screen
 * reader is told. All say the same: working, done, or waiting for you.
 */
import { h, setText } from './dom.js';
import { MARK } from './icons.js';

const STATES = { idle: ['', ''], running: ['Working · ', '#3b82f6'], waiting: ['Waiting for you · ', '#f59e0b'] };

export class Attention {
	constructor() {
		this.spoken = h('div.offscreen', { role: 'status' });
		this.urgent = h('div.offscreen', { role: 'alert' });
		document.body.append(this.spoken, this.urgent);
	}

	show(state, title) {
		const [words, colour] = STATES[state];
		const full = words + (title || 'clawdforge');
		if (document.title !== full) document.title = full;
		if (this.state === state) return;
		this.state = state;
		const dot = colour && `<circle cx="25" cy="25" r="7" fill="${colour}" stroke="#fff" stroke-width="2"/>`;
		const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#b04417"/><path d="${MARK}" transform="translate(4.5 4)" fill="none" stroke="#fff" stroke-width="2.6" stroke-linecap="round"/>${dot}</svg>`;
		document.querySelector('link[rel="icon"]').href = `data:image/svg+xml,${encodeURIComponent(svg)}`;
	}

	say(text, urgent) {
		setText(urgent ? this.urgent : this.spoken, text);
	}

	/** Only to someone who is looking elsewhere. */
	notify(title, body, onclick) {
		if (document.visibilityState === 'visible' && document.hasFocus()) return;
		try {
			const note = new Notification(title, { body, tag: title, icon: new URL('../favicon.svg', import.meta.url).href });
			note.onclick = () => {
				window.focus();
				onclick();
				note.close();
			};
		} catch {
			// not supported, or (Chrome on Android) only for service workers
		}
	}
}
