/** sidebar.js: the sessions, by when something last happened in them. */
import { h, setAttr, setText } from './dom.js';
import { icon, mark } from './icons.js';
import { ago } from './format.js';
import { menuButton } from './menu.js';

const STATE_WORDS = { running: 'working', waiting: 'waits for you', closed: 'closed', idle: '' };

export class Sidebar {
  /** `on`: open(id), create(), rename(session), close(session), copyLink(id), hide(), menu() -> entries, showClosed(on) */
  constructor(on) {
    this.on = on;
    this.rows = new Map();
    this.sessions = [];
    this.current = null;
    this.find = h('input', { type: 'search', placeholder: 'Find', 'aria-label': 'Find a session', oninput: () => this.draw() });
    this.list = h('div.session-list');
    this.note = h('p.hint.sidebar-note', { role: 'status' });
    const settings = h('button.quiet.wide', {}, icon('gear'), 'Settings');
    menuButton(settings, () => on.menu(), { label: 'Settings' });
    this.el = h(
      'nav.sidebar',
      { 'aria-label': 'Sessions' },
      h('div.brand', {}, mark(), h('span', { textContent: 'clawdforge' }), h('button.icon-button.only-narrow', { 'aria-label': 'Hide the sessions', onclick: () => on.hide() }, icon('close'))),
      h('div.sidebar-top', {}, h('button.new', { onclick: () => on.create() }, icon('plus'), 'New session'), h('div.find', {}, icon('search'), this.find)),
      this.list,
      this.note,
      h('div.sidebar-foot', {}, settings),
    );
    this.closed = h('button.quiet.show-closed', { 'aria-pressed': 'false', textContent: 'Show closed', onclick: () => this.#toggleClosed() });
    this.#skeleton();
  }

  #skeleton() {
    this.list.setAttribute('aria-busy', 'true');
    this.list.replaceChildren(...Array.from({ length: 5 }, () => h('div.skeleton.row-skeleton', { 'aria-hidden': 'true' })));
  }

  #toggleClosed() {
    const on = this.closed.getAttribute('aria-pressed') !== 'true';
    setAttr(this.closed, 'aria-pressed', String(on));
    setText(this.closed, on ? 'Hide closed' : 'Show closed');
    this.on.showClosed(on);
  }

  /** Each: {id, title, agent, at (unix s), state} */
  update(sessions, current) {
    this.sessions = sessions;
    this.current = current;
    this.draw();
  }

  fail(message) {
    setText(this.note, message);
  }

  draw() {
    this.list.removeAttribute('aria-busy');
    setText(this.note, '');
    const wanted = this.find.value.trim().toLowerCase();
    const shown = this.sessions.filter(({ title, agent, id }) => !wanted || `${title} ${agent} ${id}`.toLowerCase().includes(wanted)).sort((a, b) => b.at - a.at);
    const groups = new Map();
    for (const session of shown) {
      const name = groupOf(session.at);
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(session);
    }
    const blocks = [...groups].map(([name, list]) => {
      const rows = list.map((session) => this.#row(session));
      return { name, rows };
    });
    // Rows are kept by id, so that the focus and an open menu survive a refresh.
    const shape = JSON.stringify(blocks.map(({ name, rows }) => [name, rows.map((row) => row.dataset.id)]));
    if (shape !== this.shape) {
      this.shape = shape;
      const focused = document.activeElement;
      this.list.replaceChildren(...blocks.map(({ name, rows }) => h('section', { 'aria-label': name }, h('h2', { textContent: name }), h('ul', {}, rows))), this.closed);
      if (focused && this.list.contains(focused)) focused.focus();
    }
    if (!shown.length) setText(this.note, wanted ? 'No session fits.' : 'No sessions yet.');
  }

  #row(session) {
    let row = this.rows.get(session.id);
    if (!row) {
      const more = h('button.icon-button.row-more', { 'aria-label': 'More' }, icon('more'));
      row = h('li.session-row', { 'data-id': session.id }, h('a.session-link', { href: `#session=${session.id}`, onclick: (event) => this.#open(event, session.id) }, h('span.dot'), h('span.session-words', {}, h('span.session-title'), h('small.session-facts')), h('span.offscreen')), more);
      menuButton(more, () => this.#menu(row.session), { align: 'end' });
      this.rows.set(session.id, row);
    }
    row.session = session;
    const [link, more] = row.children;
    const [dot, words, spoken] = link.children;
    row.dataset.state = session.state;
    setText(words.children[0], session.title || 'Untitled');
    words.children[0].classList.toggle('untitled', !session.title);
    setText(words.children[1], [session.agent, ago(session.at)].filter(Boolean).join(' · '));
    setText(spoken, STATE_WORDS[session.state] ?? '');
    dot.title = STATE_WORDS[session.state] ?? '';
    setAttr(link, 'aria-current', session.id === this.current ? 'page' : null);
    setAttr(more, 'aria-label', `More for ${session.title || 'this session'}`);
    return row;
  }

  #open(event, id) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab is a fine wish
    event.preventDefault();
    this.on.open(id);
  }

  #menu(session) {
    return [
      { label: 'Rename…', icon: 'pencil', onselect: () => this.on.rename(session) },
      { label: 'Copy link', icon: 'link', onselect: () => this.on.copyLink(session.id) },
      'line',
      { label: 'Close…', icon: 'close', danger: true, disabled: session.state === 'closed', onselect: () => this.on.close(session) },
    ];
  }
}

function groupOf(at) {
  const day = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate()).getTime();
  const days = Math.round((day(new Date()) - day(new Date(at * 1000))) / 86_400_000);
  if (days <= 0) return 'Today';
  if (days === 1) return 'Yesterday';
  if (days < 7) return 'This week';
  return 'Earlier';
}
