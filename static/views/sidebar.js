/** The sessions, by when something last happened in them. */
import { h, icon, iconButton, setText } from './dom.js';
import { ago } from './format.js';
import { menuButton } from './menu.js';

const STATE_WORDS = { running: 'working', waiting: 'waits for you', finished: 'has finished', closed: 'closed' };

export class Sidebar {
	/** `on`: open(id; null: a new one), rename(row), close(row), hide(), skip(), menu(), withClosed(on) */
	constructor(on) {
		this.on = on;
		this.rows = new Map();
		this.find = h('input', { type: 'search', placeholder: 'Find', label: 'Find a session', oninput: () => this.#draw() });
		this.list = h('div.session-list', {}, Array.from({ length: 5 }, () => h('div.skeleton')));
		this.note = h('p.hint.list-note', { role: 'status' });
		const closed = h('input', { type: 'checkbox', onchange: () => on.withClosed(closed.checked) });
		this.closed = h('label.check.hint', {}, closed, 'Show closed sessions');
		this.el = h(
			'nav.sidebar',
			{ label: 'Sessions' },
			h('button.skip', { text: 'Skip to the message field', onclick: on.skip }),
			h('div.brand', {}, icon('mark'), h('span.grow', { text: 'clawdforge' }), iconButton('close', 'Hide the sessions', on.hide, 'icon-button.only-narrow')),
			h('button.new', { onclick: () => on.open(null) }, icon('plus'), 'New session'),
			h('div.find', {}, icon('search'), this.find),
			this.note,
			this.list,
			menuButton(h('button.quiet.wide', {}, icon('gear'), 'Settings'), on.menu),
		);
	}

	focus() {
		this.find.select();
	}

	update(sessions, current) {
		Object.assign(this, { sessions, current });
		this.#draw();
	}

	fail(message) {
		setText(this.note, message);
	}

	#draw() {
		const wanted = this.find.value.trim().toLowerCase();
		const shown = this.sessions.filter(({ title, agent, id }) => `${title} ${agent} ${id}`.toLowerCase().includes(wanted)).sort((a, b) => b.at - a.at);
		const nodes = [];
		const groups = new Set();
		for (const session of shown) {
			const group = groupOf(session.at);
			if (!groups.has(group)) nodes.push(h('h2', { text: group }));
			groups.add(group);
			nodes.push(this.#row(session));
		}
		const shape = shown.map(({ id, at }) => groupOf(at) + id).join();
		if (shape !== this.shape) {
			this.shape = shape;
			const focused = document.activeElement;
			this.list.replaceChildren(...nodes, this.closed);
			if (this.list.contains(focused)) focused.focus();
		}
		setText(this.note, shown.length ? '' : wanted ? 'No session fits.' : 'Your sessions will be listed here.');
	}

	#row(session) {
		const { id, title, agent, at, state } = session;
		if (!this.rows.has(id)) this.rows.set(id, this.#newRow(id));
		const row = this.rows.get(id);
		const [link, more] = row.children;
		const [, words, spoken] = link.children;
		row.session = session;
		row.dataset.state = state;
		setText(words.children[0], title || 'Untitled');
		setText(words.children[1], `${agent} · ${ago(at)}`);
		setText(spoken, STATE_WORDS[state] ?? '');
		link.setAttribute('aria-current', id === this.current ? 'page' : 'false');
		more.firstChild.setAttribute('aria-label', `More for ${title || 'this session'}`);
		return row;
	}

	#newRow(id) {
		const onclick = (event) => {
			if (event.ctrlKey || event.metaKey || event.shiftKey) return;
			event.preventDefault();
			this.on.open(id);
		};
		const link = h('a', { href: `#session=${id}`, onclick }, h('span.dot'), h('span.session-words', {}, h('span.ellipsis'), h('small')), h('span.offscreen'));
		const entries = () => [
			{ label: 'Rename…', icon: 'pencil', onselect: () => this.on.rename(row.session) },
			{ label: 'Close…', icon: 'close', danger: true, disabled: row.session.state === 'closed', onselect: () => this.on.close(row.session) },
		];
		const row = h('div.session-row', {}, link, menuButton(iconButton('more'), entries));
		return row;
	}
}

function groupOf(at) {
	const day = (date) => date.setHours(0, 0, 0, 0);
	const days = Math.round((day(new Date()) - day(new Date(at * 1000))) / 86_400_000);
	return days <= 0 ? 'Today' : days === 1 ? 'Yesterday' : days < 7 ? 'This week' : 'Earlier';
}
