/** Commands' output as a terminal shows it. */
import { Screen } from './ansi.js';
import { h, setText, template } from './dom.js';
import { plural } from './format.js';

const MAX_LINES = 2000;

export class TerminalView {
	constructor() {
		Object.assign(this, template('terminal'));
		this.#clear();
	}

	#clear() {
		Object.assign(this, { shown: '', cut: 0, screen: new Screen((line, over) => this.#line(line, over)) });
		this.code.replaceChildren(h('span'));
		this.drawn = 0; // runs of the last line that are on the screen
	}

	/** `text` is all of the output; most often it begins with what was shown before. */
	update(text) {
		const { scrollTop, scrollHeight, clientHeight } = this.el;
		if (!text.startsWith(this.shown)) this.#clear();
		const more = text.slice(this.shown.length);
		this.shown = text;
		if (more) this.screen.write(more);
		if (this.cut) {
			this.above ??= h('span.above');
			setText(this.above, `${plural(this.cut, 'line')} above ${this.cut === 1 ? 'is' : 'are'} not shown\n`);
			if (this.code.firstChild !== this.above) this.code.prepend(this.above);
		}
		if (scrollHeight - scrollTop - clientHeight < 8) this.el.scrollTop = this.el.scrollHeight;
	}

	#line({ runs, rewritten }, over) {
		const { code } = this;
		const el = code.lastChild;
		if (rewritten) el.replaceChildren();
		for (const { text, style } of rewritten ? runs : runs.slice(this.drawn)) {
			const span = el.appendChild(h('span', { text }));
			Object.assign(span.style, style);
		}
		this.drawn = runs.length;
		if (!over) return;
		el.append('\n');
		code.append(h('span'));
		this.drawn = 0;
		if (code.childNodes.length - (this.above?.isConnected ? 1 : 0) <= MAX_LINES) return;
		code.children[this.above?.isConnected ? 1 : 0].remove();
		this.cut += 1;
	}
}
