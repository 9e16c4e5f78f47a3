/** The plan, small facts, and updates that nobody knows yet. */
import { codeBlock } from './code.js';
import { h, icon, setText, template } from './dom.js';
import { pretty } from './format.js';

const PLAN_WORDS = { pending: 'to do', in_progress: 'in progress', completed: 'done' };

export class PlanView {
	constructor(item) {
		Object.assign(this, template('plan'), { item });
		this.update();
	}

	update() {
		const { entries } = this.item;
		setText(this.count, `${entries.filter(({ status }) => status === 'completed').length} of ${entries.length}`);
		// Rows stay and change, so that nothing jumps and a reader keeps the place.
		while (this.list.children.length > entries.length) this.list.lastChild.remove();
		for (const [index, { content, status }] of entries.entries()) {
			const row = this.list.children[index] ?? this.list.appendChild(template('plan-step').el);
			const [mark, words, spoken] = row.children;
			if (row.dataset.status !== status) mark.replaceChildren(status === 'completed' ? icon('check') : '');
			row.dataset.status = status;
			setText(words, content ?? '');
			setText(spoken, ` (${PLAN_WORDS[status] ?? status})`);
		}
	}
}

export class NoteView {
	constructor({ note, title, text = '' }) {
		const name = { warning: 'alert', error: 'alert', mode: 'swap' }[note] ?? 'info';
		this.el = h('p.note.hint', { 'data-note': note }, icon(name), h('span', {}, `${title} ${text}`));
	}

	update() {}
}

/** What this version of the page does not know is shown as it came. */
export class RawView {
	constructor(item) {
		Object.assign(this, template('raw'), { item });
		this.el.ontoggle = () => this.update();
		this.update();
	}

	update() {
		const { name, count, data } = this.item;
		setText(this.label, count > 1 ? `${name} × ${count}` : name);
		if (!this.el.open || this.filled === count) return;
		this.filled = count;
		this.box.replaceChildren(codeBlock(data.map(pretty).join('\n'), 'json').el, count > data.length ? `and ${count - data.length} more` : '');
	}
}
