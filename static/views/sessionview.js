/** sessionview.js: one session on the screen: header, conversation, and what is docked below. */
import { Composer, dropTarget } from './composer.js';
import { ConversationView } from './conversation.js';
import { h, oncePerFrame, setText } from './dom.js';
import { compact, duration, money } from './format.js';
import { icon } from './icons.js';
import { menuButton } from './menu.js';
import { OutboxView } from './outbox.js';
import { ScrollKeeper } from './scroll.js';
import { SettingsBar } from './settings.js';

const NOTICED = 1200; // ms; a shorter absence, or a faster load, is not worth a word
const FACTS = { starting: 'starting', hibernated: 'asleep', ask: 'asks first', 'deny-all': 'may only talk' };
const CLOSED = { idle: 'This session was closed because nothing happened in it for long.', admin: 'This session was closed by the administrator.' };
const STOPPED = {
	4500: 'The server does not accept this sign-in any more.',
	4503: 'This sign-in was revoked.',
	4504: 'Too many windows have this session open.',
	4505: 'There is no such session (any more).',
	4507: 'This page and the server speak different versions: reload the page.',
};

export class SessionView {
	/** `on`: showSidebar(), startNew(), and entries() of its menu; `parts`: promptParts; `draft`: {text, save} */
	constructor(session, { on, parts, upload, draft }) {
		this.session = session;
		this.parts = parts;
		this.awaySince = 0;

		this.title = h('h1.session-name');
		this.facts = h('span.session-facts');
		this.meter = h('meter', { min: 0, max: 1, high: 0.9, low: 0.7, optimum: 0, 'aria-label': 'Context used' });
		this.usage = h('span.usage', { hidden: true }, this.meter, h('span'));
		const more = menuButton(h('button.icon-button', { 'aria-label': 'More for this session' }, icon('more')), on.entries, { end: true });
		const bar = h('header.bar', {}, h('button.icon-button.only-narrow', { 'aria-label': 'Show the sessions', onclick: on.showSidebar }, icon('menu')), h('div.bar-words', {}, this.title, this.facts), this.usage, more);

		this.conversation = new ConversationView({
			agentName: () => session.agent,
			answer: (id, option) => session.answer(id, option),
			focusComposer: () => this.composer.focus(),
			retry: (turn) => this.#send(turn.stopReason === 'error' ? turn : { prompt: 'Continue.' }),
			parts,
		});
		this.outbox = new OutboxView(this.conversation.outbox, parts, {
			unqueue: (index) => session.unqueue(index),
			discard: (one) => session.discard(one.id),
			resend: (one) => (session.discard(one.id), this.#send(one)),
			edit: (one) => {
				session.discard(one.id);
				this.composer.text = parts(one.prompt).text;
				this.composer.focus();
			},
		});
		this.empty = h('div.empty', { hidden: true }, h('h2', { text: `A new conversation with ${session.agent}` }), h('p.hint', { text: 'Write what should be done. Drop files anywhere, or type / to see the agent’s own commands.' }));
		this.loading = h('div.loading', { hidden: true }, ['short', 'long', 'long', 'mid'].map((size) => h(`div.skeleton.${size}`)));
		const column = h('div.column', {}, this.empty, this.loading, this.conversation.el);
		const scroller = h('div.scroller', { tabIndex: -1 }, column);
		this.jump = h('button.jump', { hidden: true, 'aria-label': 'Go to the end', onclick: () => this.scroll.toEnd() }, icon('down'));
		this.scroll = this.conversation.scroll = new ScrollKeeper(scroller, column, (following) => (this.jump.hidden = following));

		this.settings = new SettingsBar({ mode: (id) => session.setMode(id), model: (id) => session.setModel(id), option: (value, key) => session.setOption(key, value) });
		this.composer = new Composer({
			placeholder: `Message ${session.agent}`,
			upload,
			controls: this.settings.el,
			on: {
				send: ({ text, blocks, files }) => this.#send({ prompt: [...(text ? [{ type: 'text', text }] : []), ...blocks], files }),
				stop: () => session.cancel(),
				commands: () => session.model.commands ?? [],
				history: () => session.history(),
				draft: draft.save,
			},
		});
		this.composer.text = draft.text;
		this.connection = h('div.strip.connection', { role: 'status', hidden: true }, h('span'), h('button.quiet', { onclick: () => session.wire.start() }));
		this.ask = h('button.strip.ask-jump', { hidden: true, onclick: () => this.showWaiting() }, icon('shield'), h('span'), h('b', { text: 'Review' }));
		this.plan = h('div.strip', { hidden: true }, h('span.plan-count'), h('span'));
		this.ended = h('div.ended', { hidden: true }, h('p'), h('button.secondary', { onclick: on.startNew }, icon('plus'), 'New session'));
		const dock = h('div.dock', {}, this.jump, h('div.dock-inner', {}, this.connection, this.ask, this.plan, this.composer.el, this.ended));
		this.el = h('section.session', { 'aria-label': 'Session' }, bar, scroller, dock);
		dropTarget(this.el, (files) => session.closed || this.composer.add(files));

		this.draw = oncePerFrame(() => this.#draw());
		this.visible = new IntersectionObserver(([entry]) => ((this.cardVisible = entry.isIntersecting), this.draw()), { root: scroller });
		session.on('change', () => {
			if (session.synced) this.conversation.draw();
			this.draw();
		});
		session.on('synced', () => this.#load());
		session.on('reset', () => this.#wait());
		this.#wait();
		this.draw();
	}

	focus() {
		this.composer.focus();
	}

	/** Goes to the oldest request, with the focus on its first option. */
	showWaiting() {
		const view = this.#waitingView();
		view?.el.scrollIntoView({ block: 'end' });
		view?.permission.focus();
	}

	#waitingView() {
		const [tool] = this.session.model.waiting.values();
		return tool && this.conversation.context.views?.get(tool);
	}

	#send(message) {
		this.session.send(message);
		this.scroll.toEnd();
	}

	#wait() {
		this.conversation.el.hidden = true;
		this.slow = setTimeout(() => (this.loading.hidden = this.session.synced), NOTICED / 6);
	}

	#load() {
		clearTimeout(this.slow);
		this.loading.hidden = true;
		this.conversation.el.hidden = false;
		this.conversation.load(this.session.model);
		this.draw();
	}

	#draw() {
		const { session } = this;
		const { model, wire, state } = session;
		const { status } = wire;
		setText(this.title, session.title || 'New session');
		setText(this.facts, [session.agent, state?.model, !session.running && FACTS[state?.agent_state], FACTS[state?.permission]].filter(Boolean).join(' · '));
		this.#usage(model.usage);
		this.settings.update(model);
		this.composer.setRunning(session.running);
		const away = this.#connection(status);
		if (this.outbox.update(session.outbox, session.queue, away)) this.scroll.keep();
		this.#waiting();
		this.#plan(model);
		const gone = status.state === 'stopped' && status.code === 4505;
		this.composer.el.hidden = session.closed || gone;
		this.ended.hidden = !session.closed && !gone;
		setText(this.ended.firstChild, gone ? STOPPED[4505] : (CLOSED[model.closed?.reason ?? state?.close_reason] ?? 'This session was closed.'));
		this.empty.hidden = !session.synced || model.turns.length + session.outbox.size + session.queue.size > 0;
	}

	#usage(usage) {
		this.usage.hidden = !usage;
		if (!usage) return;
		const { used, size, cost } = usage;
		this.meter.value = size ? used / size : 0;
		setText(this.usage.lastChild, [size ? `${compact(used)} / ${compact(size)}` : compact(used), money(cost)].filter(Boolean).join(' · '));
		this.usage.title = `Context: ${used} of ${size} tokens. Cost so far: ${money(cost) || 'not told'}.`;
	}

	/** Says quietly that the connection is away, once that is worth saying. */
	#connection({ state, code, retryAt }) {
		const now = Date.now();
		const away = state === 'away' || state === 'stopped' || (state === 'connecting' && this.awaySince > 0);
		this.awaySince = away ? this.awaySince || now : 0;
		clearTimeout(this.later);
		this.connection.hidden = !away || code === 4508 || code === 4505 || (state !== 'stopped' && now - this.awaySince < NOTICED);
		if (!away) return false;
		const wait = Math.ceil((retryAt - now) / 1000);
		const [words, button] = this.connection.children;
		if (state === 'stopped') setText(words, STOPPED[code] ?? `The server ended the connection (${code}).`);
		else setText(words, wait > 1 ? `Connection lost. Trying again in ${duration(wait * 1000)}.` : 'Connection lost. Trying again…');
		setText(button, state === 'stopped' ? 'Try again' : 'Try now');
		button.hidden = state !== 'stopped' && !(wait > 2);
		if (state !== 'stopped') this.later = setTimeout(this.draw, 1000);
		return true;
	}

	/** A request that is not before the reader's eyes is announced above the composer. */
	#waiting() {
		const view = this.#waitingView();
		const card = view?.permission?.card;
		if (card !== this.card) {
			this.visible.disconnect();
			this.card = card;
			this.cardVisible = true;
			if (card) this.visible.observe(card);
		}
		this.ask.hidden = !card || this.cardVisible;
		if (card) setText(this.ask.children[1], `${this.session.agent} waits for you: ${view.item.title || 'a permission'}`);
	}

	/** The plan in one line while it is worked on, for it scrolls away. */
	#plan({ turns }) {
		const turn = turns.at(-1);
		const entries = (turn?.status === 'running' && !turn.plan?.removed && turn.plan?.entries) || [];
		const at = (wanted) => entries.find(({ status }) => status === wanted);
		this.plan.hidden = !entries.length;
		setText(this.plan.firstChild, `${entries.filter(({ status }) => status === 'completed').length} of ${entries.length}`);
		setText(this.plan.lastChild, (at('in_progress') ?? at('pending'))?.content ?? 'All done');
	}
}
