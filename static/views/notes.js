/** notes.js: the plan, small facts, and updates that nobody knows yet. */
import { h, setText } from './dom.js';
import { icon } from './icons.js';
import { plural, pretty } from './format.js';
import { codeBlock } from './code.js';
import { MarkdownView } from './markdown.js';

const PLAN_WORDS = { pending: 'To do', in_progress: 'In progress', completed: 'Done' };

export class PlanView {
  constructor(item) {
    this.item = item;
    this.count = h('span.plan-count');
    this.list = h('ol.plan-list');
    this.el = h('section.plan', { 'aria-label': 'Plan' }, h('h3', {}, icon('list'), 'Plan', this.count), this.list);
    this.update();
  }

  update() {
    const { item } = this;
    this.el.hidden = Boolean(item.removed);
    const entries = item.entries ?? [];
    const done = entries.filter((entry) => entry.status === 'completed').length;
    setText(this.count, entries.length ? `${done} of ${entries.length}` : '');
    if ((item.text ?? '') !== (this.shown ?? '')) {
      this.shown = item.text;
      this.text?.remove();
      const view = new MarkdownView(); // some agents plan in prose
      view.update(item.text ?? '', true);
      this.text = this.el.appendChild(view.el);
    }
    // Rows stay and change, so that nothing jumps and a reader keeps the place.
    while (this.list.children.length > entries.length) this.list.lastChild.remove();
    entries.forEach((entry, index) => {
      let row = this.list.children[index];
      if (!row) {
        row = h('li', {}, h('span.plan-mark'), h('span.plan-text'), h('span.offscreen'));
        this.list.append(row);
      }
      if (row.dataset.status !== entry.status) {
        row.dataset.status = entry.status;
        row.firstChild.replaceChildren(...(entry.status === 'completed' ? [icon('check')] : []));
      }
      setText(row.children[1], entry.content ?? '');
      setText(row.children[2], ` (${PLAN_WORDS[entry.status] ?? entry.status})`);
    });
  }
}

export class NoteView {
  constructor(item) {
    this.item = item;
    this.text = h('span');
    this.detail = h('span.note-detail');
    const name = { warning: 'alert', error: 'alert', mode: 'swap', compaction: 'fold' }[item.note] ?? 'info';
    this.el = h('p.note', { 'data-note': item.note }, icon(name), this.text, this.detail);
    this.update();
  }

  update() {
    const { note, title, text } = this.item;
    if (note === 'mode') setText(this.text, `Mode is now ${title}`);
    else if (note === 'compaction') setText(this.text, { in_progress: 'Summarising the conversation to free context…', completed: 'The conversation was summarised to free context', failed: 'Summarising the conversation failed' }[title] ?? `Summary: ${title}`);
    else setText(this.text, title);
    setText(this.detail, text ?? '');
  }
}

/** Never swallowed: what this version of the page does not know is shown as it came. */
export class RawView {
  constructor(item) {
    this.item = item;
    this.label = h('span');
    this.more = h('span.hint');
    this.el = h('details.raw', { ontoggle: () => this.#fill() }, h('summary', {}, icon('frames'), this.label, this.more));
    this.update();
  }

  update() {
    setText(this.label, this.item.name);
    setText(this.more, this.item.count > 1 ? `${this.item.count} updates` : '');
    if (this.el.open) this.#fill();
  }

  #fill() {
    if (!this.el.open || this.filled === this.item.count) return;
    this.filled = this.item.count;
    const { data, count } = this.item;
    this.box?.remove();
    this.box = h('div', {}, codeBlock(data.map(pretty).join('\n'), 'json').el, count > data.length ? h('p.hint', { textContent: `and ${plural(count - data.length, 'more')}` }) : null);
    this.el.append(this.box);
  }
}
