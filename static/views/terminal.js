/** Commands' output about as a terminal shows it: colours, lines written over. */
import { h, template } from './dom.js';

const MAX_LINES = 2000;
const COLOURS = ['#958d82', '#f08a80', '#8fd19e', '#e8c37a', '#8fb9f5', '#d8a1e6', '#86d3d6', '#e6e1d8'];
const STYLES = { 1: ['fontWeight', 700], 2: ['opacity', 0.75], 3: ['fontStyle', 'italic'], 4: ['textDecoration', 'underline'] };
const OFF = { 22: ['fontWeight', 'opacity'], 23: ['fontStyle'], 24: ['textDecoration'], 39: ['color'], 49: ['backgroundColor'] };
// CSI (colours, cursor), OSC (titles, links), and the short escapes.
const ESCAPE = /\x1b\[([0-9;:?]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_()][A-Z0-9]?/g;

export class TerminalView {
	constructor() {
		Object.assign(this, template('terminal'));
		this.#clear();
	}

	#clear() {
		this.shown = this.pending = '';
		this.style = {};
		this.code.replaceChildren();
		this.#newLine();
	}

	/** `text` is all of the output; most often it begins with what was shown before. */
	update(text) {
		const { scrollTop, scrollHeight, clientHeight } = this.el;
		if (!text.startsWith(this.shown)) this.#clear();
		const more = this.pending + text.slice(this.shown.length);
		this.shown = text;
		// An escape sequence whose end has not come yet waits for it.
		this.pending = /\x1b(\[[0-9;:?]*|\][^\x07\x1b]*)?$/.exec(more)?.[0] ?? '';
		const whole = more.slice(0, more.length - this.pending.length);
		let at = 0;
		for (const match of whole.matchAll(ESCAPE)) {
			this.#print(whole.slice(at, match.index));
			at = match.index + match[0].length;
			if (match[2] === 'm') this.#restyle(match[1]);
			else if (match[2] === 'K' && (this.over || match[1] > 0)) this.line.replaceChildren();
		}
		this.#print(whole.slice(at));
		if (scrollHeight - scrollTop - clientHeight < 8) this.el.scrollTop = this.el.scrollHeight;
	}

	#print(text) {
		for (const piece of text.split(/(\r?\n|\r)/)) {
			if (piece === '\r') this.over = true;
			else if (piece.endsWith('\n')) this.#newLine();
			else if (piece) {
				if (this.over) this.line.replaceChildren();
				this.over = false;
				const span = this.line.appendChild(h('span', { text: piece.replace(/[\x00-\x08\x0b-\x1f\x7f]/g, '') }));
				Object.assign(span.style, this.style);
			}
		}
	}

	#newLine() {
		this.over = false;
		this.line?.append('\n');
		this.line = this.code.appendChild(h('span'));
		if (this.code.childNodes.length > MAX_LINES) this.code.firstChild.remove();
	}

	#restyle(params) {
		const codes = (params || '0').split(/[;:]/).map(Number);
		for (let i = 0; i < codes.length; i += 1) {
			const code = codes[i];
			const [name, value] = STYLES[code] ?? [];
			if (code === 0) this.style = {};
			else if (name) this.style[name] = value;
			else if (OFF[code]) for (const off of OFF[code]) delete this.style[off];
			else if (code === 38 || code === 48) i += codes[i + 1] === 5 ? 2 : 4;
			else if (code >= 30 && code % 10 < 8) {
				const behind = (code >= 40 && code < 50) || code >= 100;
				this.style[behind ? 'backgroundColor' : 'color'] = COLOURS[code % 10] + (behind ? '55' : '');
			}
		}
	}
}
