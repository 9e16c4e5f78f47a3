/** Building elements without markup strings. */

/**
 * h('button.primary', {onclick, label: 'Send'}, icon('up'), 'Send')
 * `text` sets textContent, `label` aria-label. Children: nodes, strings (never markup), arrays, or nothing.
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
		else node.setAttribute(name === 'label' ? 'aria-label' : name, value === true ? '' : value);
	}
	node.append(...children.flat(2).filter((child) => child || child === 0));
	return node;
}

const icons = new Map();

/** One of those that index.html draws. */
export function icon(name) {
	if (!icons.has(name)) {
		const all = document.getElementById('icons').content.firstElementChild;
		const svg = all.cloneNode();
		svg.setAttribute('class', name === 'mark' ? 'mark' : `icon icon-${name}`);
		svg.append(all.querySelector(`[data-icon='${name}']`).cloneNode());
		icons.set(name, svg);
	}
	return icons.get(name).cloneNode(true);
}

export function iconButton(name, label, onclick, classes = 'icon-button') {
	return h(`button.${classes}`, { label, onclick }, icon(name));
}

export function setText(node, text) {
	if (node.textContent !== text) node.textContent = text;
}

let ids = 0;
export const uid = () => `u${(ids += 1)}`;

export function toggler(words, body, draw) {
	const el = h('button.line', { 'aria-expanded': 'false', 'aria-controls': (body.id = uid()), onclick: () => open(body.hidden) }, words, icon('chevron'));
	const toggle = { el, open, touched: false };
	function open(on = true) {
		toggle.touched = true;
		body.hidden = !on;
		el.setAttribute('aria-expanded', String(on));
		if (on) draw();
	}
	body.hidden = true;
	return toggle;
}

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
