/** sessionview.js: one session on the screen: header, conversation, and what is docked below. */
import { h, oncePerFrame, setAttr, setText } from './dom.js';
import { icon } from './icons.js';
import { compact, duration, money, plural } from './format.js';
import { menuButton } from './menu.js';
import { Composer, dropTarget } from './composer.js';
import { ConversationView } from './conversation.js';
import { OutboxView } from './outbox.js';
import { ScrollKeeper } from './scroll.js';
import { SettingsBar } from './settings.js';

const AGENT_STATE = { starting: 'starting', hibernated: 'asleep' };
const CLOSED_BY = { client: 'This session was closed.', idle: 'This session was closed because nothing happened in it for long.', admin: 'This session was closed by the administrator.' };
const AWAY_AFTER = 1200; // ms; a shorter absence is nobody's concern
const STOPPED = {
  4500: 'The server does not accept this sign-in any more.',
  4503: 'This sign-in was revoked.',
  4504: 'Too many windows have this session open.',
  4505: 'There is no such session (any more).',
  4507: 'This page and the server speak different versions. Reload the page.',
};

export class SessionView {
  /** `on`: menu(), frames(), rename(), close(), copyLink(), startNew(), say(text), problem(text) */
  constructor(session, { on, parts, upload, draft }) {
    this.session = session;
    this.on = on;
    this.away = 0;

    this.title = h('h1.session-name');
    this.agent = h('span.agent-state');
    this.usage = h('span.usage');
    const more = h('button.icon-button', { 'aria-label': 'More for this session' }, icon('more'));
    menuButton(more, () => this.#menu(), { align: 'end', label: 'Session' });
    this.header = h('header.bar', {}, h('button.icon-button.only-narrow', { 'aria-label': 'Show the sessions', onclick: () => on.menu() }, icon('menu')), h('div.bar-words', {}, this.title, this.agent), this.usage, more);

    this.scroller = h('div.scroller', { tabIndex: -1 });
    this.column = h('div.column');
    this.jump = h('button.jump', { hidden: true, 'aria-label': 'Go to the end', onclick: () => this.scroll.toEnd(!matchMedia('(prefers-reduced-motion: reduce)').matches) }, icon('down'));
    this.scroll = new ScrollKeeper(this.scroller, this.column, (following) => (this.jump.hidden = following));
    this.conversation = new ConversationView(
      {
        agentName: () => session.agent,
        answer: (id, option) => session.answer(id, option),
        focusComposer: () => this.composer.focus(),
        retry: (turn, go) => (go ? session.send({ text: 'Continue.' }) : session.again(turn), this.scroll.toEnd()),
        parts,
      },
      this.scroll,
    );
    this.outbox = new OutboxView(this.conversation.outbox, parts, {
      unqueue: (index) => session.unqueue(index),
      discard: (id) => session.discard(id),
      resend: (one) => (session.discard(one.id), session.again(one)),
      edit: (one) => {
        session.discard(one.id);
        this.composer.text = parts(typeof one.prompt === 'string' ? [{ type: 'text', text: one.prompt }] : one.prompt).text;
        this.composer.focus();
      },
    });
    this.empty = h('div.empty');
    this.column.append(this.empty, this.conversation.el);
    this.scroller.append(this.column);

    this.settings = new SettingsBar({ mode: (id) => session.setMode(id), model: (id) => session.setModel(id), option: (key, value) => session.setOption(key, value) });
    this.composer = new Composer({
      placeholder: `Message ${session.agent}`,
      upload,
      controls: [this.settings.el],
      on: {
        send: (message) => (session.send(message), this.scroll.toEnd()),
        stop: () => session.cancel(),
        commands: () => session.model.commands ?? [],
        history: () => session.history(),
        draft: draft.save,
      },
    });
    this.composer.text = draft.text;
    this.ask = h('button.ask-jump', { hidden: true, onclick: () => this.showWaiting() }, icon('shield'), h('span'), h('span.ask-jump-go', { textContent: 'Review' }));
    this.plan = h('div.plan-line', { hidden: true });
    this.connection = h('div.connection', { role: 'status', hidden: true });
    this.ended = h('div.ended', { hidden: true });
    this.dock = h('div.dock', {}, h('div.dock-float', {}, this.jump), h('div.dock-inner', {}, this.connection, this.ask, this.plan, this.composer.el, this.ended));

    this.el = h('section.session', { 'aria-label': 'Session' }, this.header, this.scroller, this.dock);
    dropTarget(this.el, (files) => !session.closed && this.composer.add(files));

    this.draw = oncePerFrame(() => this.#draw());
    session.on('change', () => {
      if (session.synced) this.conversation.draw();
      this.draw();
    });
    session.on('synced', () => this.#load());
    session.on('reset', () => this.#skeleton());
    this.#skeleton();
    if (session.synced) this.#load();
    this.#draw();
    // Whether the request that waits is before the reader's eyes.
    this.seen = new IntersectionObserver((entries) => {
      for (const entry of entries) this.askVisible = entry.isIntersecting;
      this.draw();
    }, { root: this.scroller });
  }

  focus() {
    this.composer.focus();
  }

  /** Scrolls to the oldest request and puts the focus on its first option. */
  showWaiting() {
    const [tool] = this.session.model.waiting.values();
    const view = tool && this.conversation.context.views.get(tool);
    if (!view) return false;
    view.el.scrollIntoView({ block: 'nearest' });
    view.permission?.focus();
    return true;
  }

  #skeleton() {
    this.conversation.el.hidden = true;
    this.empty.hidden = true;
    setAttr(this.column, 'aria-busy', 'true');
    // Only a load that one notices gets a skeleton: no flash on a fast one.
    clearTimeout(this.slow);
    this.slow = setTimeout(() => {
      this.skeleton ??= h('div.loading', { 'aria-hidden': 'true' }, ['short', 'long', 'long', 'mid'].map((size) => h(`div.skeleton.${size}`)));
      this.column.prepend(this.skeleton);
    }, 200);
  }

  #load() {
    clearTimeout(this.slow);
    this.skeleton?.remove();
    this.column.removeAttribute('aria-busy');
    this.conversation.el.hidden = false;
    this.conversation.load(this.session.model);
    this.draw();
  }

  #draw() {
    const { session } = this;
    const { model, wire } = session;
    setText(this.title, session.title || 'New session');
    this.#agentState();
    this.#usage(model.usage);
    this.settings.update(model);
    this.composer.setRunning(session.running);
    const away = this.#connection(wire.status);
    if (this.outbox.update({ outbox: session.outbox, queue: session.queue, away })) this.scroll.keep();
    this.#waiting(model);
    this.#plan(model);
    this.#closed();
    const empty = session.synced && !model.turns.length && !session.outbox.size && !session.queue.size;
    if (this.empty.hidden === empty) {
      this.empty.hidden = !empty;
      if (empty && !this.empty.childElementCount) {
        this.empty.append(h('h2', { textContent: `A new conversation with ${session.agent}` }), h('p.hint', { textContent: 'Write what should be done. Drop files anywhere, or type / to see the agent’s own commands.' }));
      }
    }
  }

  #agentState() {
    const { session } = this;
    const { state, permission } = { state: session.state?.agent_state, permission: session.state?.permission };
    const model = session.state?.model;
    setText(this.agent, [session.agent, model, session.running ? '' : AGENT_STATE[state], permission === 'ask' ? 'asks first' : permission === 'deny-all' ? 'may only talk' : ''].filter(Boolean).join(' · '));
  }

  #usage(usage) {
    this.usage.hidden = !usage;
    if (!usage) return;
    const share = usage.size ? Math.min(1, usage.used / usage.size) : 0;
    const words = [usage.size ? `${compact(usage.used)} / ${compact(usage.size)}` : compact(usage.used), money(usage.cost)].filter(Boolean).join(' · ');
    if (this.usageShown === words) return;
    this.usageShown = words;
    this.meter ??= this.usage.appendChild(h('meter', { min: 0, max: 1, low: 0.7, high: 0.9, optimum: 0, 'aria-label': 'Context used' }));
    this.usageWords ??= this.usage.appendChild(h('span'));
    this.meter.value = share;
    setText(this.usageWords, words);
    this.usage.title = `Context used: ${usage.used} of ${usage.size} tokens${usage.cost ? `, cost so far ${money(usage.cost)}` : ''}`;
  }

  /** Says quietly that the connection is away, once it is worth saying. */
  #connection(status) {
    const now = Date.now();
    const bad = status.state === 'away' || status.state === 'stopped' || (status.state === 'connecting' && this.away);
    if (!bad) {
      this.away = 0;
      clearTimeout(this.awayTimer);
      this.connection.hidden = true;
      return false;
    }
    this.away ||= now;
    clearTimeout(this.awayTimer);
    if (status.state === 'stopped') {
      // A session that is over has its own words.
      this.connection.hidden = status.code === 4508;
      this.#connectionWords(STOPPED[status.code] ?? `The server ended the connection (${status.code}).`, 'Try again', () => this.session.wire.start());
      return true;
    }
    if (now - this.away < AWAY_AFTER) {
      this.awayTimer = setTimeout(this.draw, AWAY_AFTER);
      return true;
    }
    const wait = status.retryAt ? Math.ceil((status.retryAt - now) / 1000) : 0;
    this.#connectionWords(wait > 1 ? `Connection lost. Trying again in ${duration(wait * 1000)}.` : 'Connection lost. Trying again…', wait > 2 ? 'Try now' : '', () => this.session.wire.wake());
    this.connection.hidden = false;
    if (wait > 1) this.awayTimer = setTimeout(this.draw, 1000);
    return true;
  }

  #connectionWords(words, action, onclick) {
    this.connectionText ??= this.connection.appendChild(h('span'));
    this.connectionButton ??= this.connection.appendChild(h('button.quiet', { onclick: () => this.connectionAction() }));
    setText(this.connectionText, words);
    setText(this.connectionButton, action);
    this.connectionButton.hidden = !action;
    this.connectionAction = onclick;
  }

  #waiting(model) {
    const [tool] = model.waiting.values();
    const view = tool && this.conversation.context.views.get(tool);
    const target = view?.permission?.card ?? null;
    if (target !== this.observed) {
      if (this.observed) this.seen.unobserve(this.observed);
      this.observed = target;
      this.askVisible = undefined;
      if (target) this.seen.observe(target);
    }
    this.ask.hidden = !tool || this.askVisible !== false || !view;
    if (tool) setText(this.ask.children[1], `${this.session.agent} waits for you: ${tool.title || 'a permission'}`);
  }

  /** The plan in one line while it is being worked on, for it scrolls away. */
  #plan(model) {
    const turn = model.turns[model.turns.length - 1];
    const plan = turn?.status === 'running' && turn.plan && !turn.plan.removed ? turn.plan : null;
    const entries = plan?.entries ?? [];
    this.plan.hidden = !entries.length;
    if (!entries.length) return;
    const done = entries.filter((entry) => entry.status === 'completed').length;
    const current = entries.find((entry) => entry.status === 'in_progress') ?? entries.find((entry) => entry.status === 'pending');
    this.planCount ??= this.plan.appendChild(h('span.plan-count'));
    this.planWords ??= this.plan.appendChild(h('span.plan-words'));
    setText(this.planCount, `${done} of ${entries.length}`);
    setText(this.planWords, current?.content ?? 'All done');
  }

  #closed() {
    const { session } = this;
    const closed = session.closed;
    const gone = session.wire.status.state === 'stopped' && session.wire.status.code === 4505;
    this.composer.el.hidden = closed || gone;
    this.ended.hidden = !closed && !gone;
    if (!closed || this.ended.childElementCount) return;
    const reason = session.model.closed?.reason ?? session.state?.close_reason;
    this.ended.append(h('p', { textContent: CLOSED_BY[reason] ?? CLOSED_BY.client }), h('button.secondary', { onclick: () => this.on.startNew() }, icon('plus'), 'New session'));
  }

  #menu() {
    const { session } = this;
    return [
      { label: 'Rename…', icon: 'pencil', onselect: () => this.on.rename() },
      { label: 'Copy link', icon: 'link', onselect: () => this.on.copyLink() },
      { label: 'Raw frames', icon: 'frames', keys: 'Ctrl `', onselect: () => this.on.frames() },
      'line',
      { heading: [session.state?.cwd, plural(session.model.turns.filter((turn) => turn.prompt).length, 'turn')].filter(Boolean).join(' · ') },
      { label: 'Close session…', icon: 'close', danger: true, disabled: session.closed, onselect: () => this.on.close() },
    ];
  }
}
