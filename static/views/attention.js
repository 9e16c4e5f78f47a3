/** The tab's title and icon, a notification, and what a screen reader is told. */
import { setText } from './dom.js';

const STATES = { idle: ['', ''], running: ['Working · ', '-running'], waiting: ['Waiting for you · ', '-waiting'] };
const iconAddress = (suffix = '') => new URL(`../favicon${suffix}.svg`, import.meta.url).href;

export class Attention {
	show(state, title) {
		const [words, suffix] = STATES[state];
		document.title = words + (title || 'clawdforge');
		if (this.state === state) return;
		this.state = state;
		document.querySelector('link[rel="icon"]').href = iconAddress(suffix);
	}

	say(text, urgent) {
		setText(document.getElementById(urgent ? 'urgent' : 'spoken'), text);
	}

	/** Only to someone who is looking elsewhere. */
	notify(title, body, onclick) {
		if (document.visibilityState === 'visible' && document.hasFocus()) return;
		try {
			const note = new Notification(title, { body, tag: title, icon: iconAddress() });
			note.onclick = () => {
				window.focus();
				onclick();
				note.close();
			};
		} catch {
		}
	}
}
