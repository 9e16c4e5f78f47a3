/** frames.js: the raw frames of a session, for developers of other clients. */
import { copyText, h, oncePerFrame, setText } from './dom.js';
import { icon } from './icons.js';
import { copyButton } from './code.js';
import { plural } from './format.js';

const SHOWN = 300;

export class FramesView {
  constructor(onClose) {
    this.session = null;
    this.paused = false;
    this.filter = h('input', { type: 'search', placeholder: 'Filter', 'aria-label': 'Filter frames', oninput: () => this.#all() });
    this.list = h('ol.frames-list', { tabIndex: 0, 'aria-label': 'Frames', role: 'list' });
    this.count = h('span.hint');
    this.pause = h('button.quiet', { 'aria-pressed': 'false', textContent: 'Pause', onclick: () => this.#toggle() });
    this.el = h(
      'aside.frames',
      { 'aria-label': 'Raw frames', hidden: true },
      h('header', {}, h('h2', { textContent: 'Raw frames' }), this.count, h('button.icon-button', { 'aria-label': 'Close the raw frames', onclick: onClose }, icon('close'))),
      h('div.frames-tools', {}, this.filter, this.pause, copyButton(() => this.#matching().map((frame) => frame.text).join('\n'), 'Copy all')),
      this.list,
    );
    this.draw = oncePerFrame(() => this.#all());
  }

  show(session) {
    this.unsubscribe?.();
    this.session = session;
    this.el.hidden = !session;
    if (!session) return;
    this.unsubscribe = session.on('frame', () => !this.paused && this.draw());
    this.#all();
  }

  #matching() {
    const wanted = this.filter.value.toLowerCase();
    const all = this.session?.frames ?? [];
    return wanted ? all.filter((frame) => frame.text.toLowerCase().includes(wanted)) : all;
  }

  /** The newest few hundred. Rows are kept by their frame, so a busy stream only adds some. */
  #all() {
    if (this.el.hidden || !this.session) return;
    const atEnd = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 40;
    const matching = this.#matching();
    const frames = matching.slice(-SHOWN);
    this.rows ??= new WeakMap();
    const wanted = new Set();
    for (const frame of frames) {
      let row = this.rows.get(frame);
      if (!row) this.rows.set(frame, (row = rowView(frame)));
      wanted.add(row);
    }
    for (const row of [...this.list.children]) if (!wanted.has(row)) row.remove();
    let last = null;
    for (const row of wanted) {
      if (row.previousElementSibling !== last || row.parentNode !== this.list) this.list.insertBefore(row, last ? last.nextSibling : this.list.firstChild);
      last = row;
    }
    setText(this.count, plural(matching.length, 'frame'));
    if (atEnd) this.list.scrollTop = this.list.scrollHeight;
  }

  #toggle() {
    this.paused = !this.paused;
    this.pause.setAttribute('aria-pressed', String(this.paused));
    setText(this.pause, this.paused ? 'Go on' : 'Pause');
    if (!this.paused) this.#all();
  }
}

function rowView({ dir, text, ts }) {
  const type = /"type":"([a-z_]+)"/.exec(text)?.[1] ?? '';
  const seq = /"seq":(\d+)/.exec(text.slice(0, 80))?.[1] ?? '';
  const kind = type === 'event' ? (/"sessionUpdate":"([a-z_]+)"/.exec(text)?.[1] ?? '') : '';
  const body = h('pre', { textContent: text.length > 400 ? `${text.slice(0, 400)}…` : text });
  const row = h(
    'li.frame',
    { 'data-dir': dir },
    h(
      'details',
      { ontoggle: (event) => setText(body, event.target.open ? pretty(text) : '') },
      h('summary', {}, h('span.frame-dir', { textContent: dir === 'up' ? '↑' : '↓', title: dir === 'up' ? 'sent' : 'received' }), h('span.frame-seq', { textContent: seq }), h('span.frame-type', { textContent: kind ? `${type} ${kind}` : type }), h('time', { textContent: new Date(ts).toISOString().slice(11, 23) })),
      body,
      h('button.quiet', { textContent: 'Copy', onclick: () => copyText(text) }),
    ),
  );
  setText(body, '');
  return row;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
