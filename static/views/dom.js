/** dom.js: building elements without markup strings. */
import { icon } from './icons.js';

/**
 * h('button.primary', {onclick, 'aria-label': 'Send'}, icon('send'), 'Send')
 * `text` sets textContent. Children: nodes, strings (never markup), arrays, or nothing.
 */
export function h(spec, props = {}, ...children) {
	const [tag, ...classes] = spec.split('.');
	const node = document.createElement(tag);
	if (classes.length) node.className = classes.join(' ');
	if (tag === 'button') node.type = 'button';
	for (const [name, value] of Object.entries(props)) {
		if (value == null || value === false) continue;
		if (name === 'text') node.textContent = value;
		else if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
		else if (name === 'value' || name === 'tabIndex') node[name] = value;
		else node.setAttribute(name, value === true ? '' : value);
	}
	node.append(...children.flat(2).filter((child) => child || child === 0));
	return node;
}

/** Only if it differs: unchanged nodes cause no layout and no speech. */
export function setText(node, text) {
	if (node.textContent !== text) node.textContent = text;
}

let ids = 0;
export const uid = () => `u${(ids += 1)}`;

/** A line that unfolds `body`, which `draw()` fills when it is seen. */
export function toggler(words, body, draw) {
	const el = h('button.line', { 'aria-expanded': 'false', 'aria-controls': (body.id = uid()), onclick: () => open(body.hidden) }, words, icon('chevron'));
	const toggle = { el, touched: false, open: (on = true) => open(on) };
	function open(on) {
		toggle.touched = true;
		body.hidden = !on;
		el.setAttribute('aria-expanded', String(on));
		if (on) draw();
	}
	body.hidden = true;
	return toggle;
}

/** A function that runs at most once a frame, however often it is called. */
export function oncePerFrame(fn) {
	let asked = 0;
	const run = () => {
		asked = 0;
		fn();
	};
	return () => (asked ||= requestAnimationFrame(run));
}

export async function copyText(text) {
	try {
		await navigator.clipboard.writeText(text);
		return true;
	} catch {
		// An insecure origin (a LAN address) has no clipboard API; the old way works.
		const area = document.body.appendChild(h('textarea.offscreen', { value: text }));
		area.select();
		const done = document.execCommand('copy');
		area.remove();
		return done;
	}
}
