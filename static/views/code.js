/** A block of code with its language, a copy button, and colours from a worker. */
import { copyText, h, setText, template } from './dom.js';

const MAX_COLOURED = 60_000; // characters; longer code stays plain
const LIVE_COLOURED = 12_000; // the same while it still grows, and
const LIVE_EVERY = 400; // ms between two colourings of it

let worker;
let asked = 0;
const waiting = new Map();
const languages = new WeakMap();

async function paint(code) {
	if (!worker) {
		worker = new Worker(new URL('../highlight.worker.js', import.meta.url), { type: 'module' });
		worker.onmessage = ({ data: { id, tokens } }) => {
			waiting.get(id)(tokens);
			waiting.delete(id);
		};
	}
	const text = code.textContent;
	const id = (asked += 1);
	worker.postMessage({ id, code: text, language: languages.get(code) });
	const tokens = await new Promise((resolve) => waiting.set(id, resolve));
	if (!tokens || !code.textContent.startsWith(text)) return;
	const rest = code.textContent.slice(text.length);
	code.replaceChildren(...tokens.map(([name, part]) => (name ? h('span', { class: name, text: part }) : part)), rest);
}

const near = new IntersectionObserver(
	(entries) => {
		for (const { isIntersecting, target } of entries) {
			if (!isIntersecting) continue;
			near.unobserve(target);
			paint(target);
		}
	},
	{ rootMargin: '600px' },
);

export function codeBlock(text, language = '', growing = false) {
	const { el, name, pre, code } = template('code');
	setText(code, text.replace(/\n$/, ''));
	setText(name, language || 'text');
	pre.ariaLabel = `Code ${language}`;
	name.after(copyButton(() => code.textContent));
	let { length } = text;
	let timer = 0;
	languages.set(code, language);
	const finish = () => {
		clearTimeout(timer);
		if (language && length < MAX_COLOURED) near.observe(code);
	};
	if (!growing) finish();
	const append = (more) => {
		if (code.lastChild?.nodeType === Node.TEXT_NODE) code.lastChild.appendData(more);
		else code.append(more);
		length += more.length;
		if (!language || length > LIVE_COLOURED || timer) return;
		timer = setTimeout(() => {
			timer = 0;
			paint(code);
		}, LIVE_EVERY);
	};
	return { el, append, finish };
}

export function copyButton(text, label = 'Copy') {
	const { el, words } = template('copy');
	setText(words, label);
	el.onclick = async () => {
		setText(words, (await copyText(text())) ? 'Copied' : 'Failed');
		setTimeout(() => setText(words, label), 1500);
	};
	return el;
}
