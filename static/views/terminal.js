/** terminal.js: output of commands about as a terminal shows it: colours, and lines written over. */
import { h } from './dom.js';

const MAX_LINES = 2000;
const COLOURS = ['black', 'red', 'green', 'yellow', 'blue', 'magenta', 'cyan', 'white'];
const STYLES = { 1: 'bold', 2: 'dim', 3: 'italic', 4: 'under' };
const OFF = { 22: ['bold', 'dim'], 23: ['italic'], 24: ['under'], 39: ['fg'], 49: ['bg'] };
// CSI (colours, cursor), OSC (titles, links), and the short escapes.
const ESCAPE = /\x1b\[([0-9;:?]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_()][A-Z0-9]?/g;

export class TerminalView {
	constructor() {
		this.code = h('code');
		this.el = h('pre.terminal', { tabIndex: 0, role: 'group', 'aria-label': 'Output' }, this.code);
		this.shown = this.pending = '';
		this.style = {};
		this.#newLine();
	}

	/** `text` is all of the output; it begins with what was shown before. */
	update(text) {
		const { scrollTop, scrollHeight, clientHeight } = this.el;
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
			else if (match[2] === 'K') this.line.replaceChildren();
		}
		this.#print(whole.slice(at));
		if (scrollHeight - scrollTop - clientHeight < 8) this.el.scrollTop = this.el.scrollHeight;
	}

	#print(text) {
		for (const piece of text.split(/(\r?\n|\r)/)) {
			if (piece === '\r') this.over = true; // a progress bar writes over its line
			else if (piece.endsWith('\n')) this.#newLine();
			else if (piece) {
				if (this.over) this.line.replaceChildren();
				this.over = false;
				const classes = Object.values(this.style).join('.');
				this.line.append(h(classes ? `span.${classes}` : 'span', { text: piece.replace(/[\x00-\x08\x0b-\x1f\x7f]/g, '') }));
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
			if (code === 0) this.style = {};
			else if (STYLES[code]) this.style[STYLES[code]] = `t-${STYLES[code]}`;
			else if (OFF[code]) for (const name of OFF[code]) delete this.style[name];
			else if (code === 38 || code === 48) i += codes[i + 1] === 5 ? 2 : 4; // exact colours are left out
			else if (code >= 30 && code % 10 < 8) {
				const name = (code >= 40 && code < 50) || code >= 100 ? 'bg' : 'fg';
				this.style[name] = `t-${name}-${COLOURS[code % 10]}`;
			}
		}
	}
}
