/** diff.js: what changed between two texts, by lines, and how to show it. */
import { h } from './dom.js';
import { plural } from './format.js';

const CONTEXT = 3;
const MAX_EDITS = 300; // beyond this many differences the search takes too long
const MAX_ROWS = 400; // shown at once

/** [{sign: ' ' | '+' | '-', text, line}] */
export function diffLines(oldText, newText) {
	const [a, b] = [oldText, newText].map((text) => (text ? text.replace(/\r\n?/g, '\n').replace(/\n$/, '').split('\n') : []));
	let start = 0;
	while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
	let end = 0;
	while (end < Math.min(a.length, b.length) - start && a.at(-1 - end) === b.at(-1 - end)) end += 1;
	const same = (text) => [' ', text];
	const middle = edits(a.slice(start, a.length - end), b.slice(start, b.length - end));
	let [oldLine, newLine] = [0, 0];
	return [...a.slice(0, start).map(same), ...middle, ...a.slice(a.length - end).map(same)].map(([sign, text]) => {
		if (sign !== '+') oldLine += 1;
		if (sign !== '-') newLine += 1;
		return { sign, text, line: sign === '-' ? oldLine : newLine };
	});
}

/** Myers' greedy search; replaces all when the texts have too little in common. */
function edits(a, b) {
	const trace = [];
	const reach = new Map([[1, 0]]); // diagonal -> how far along a
	const fromAbove = (k, d, known) => k === -d || (k !== d && known.get(k - 1) < known.get(k + 1));
	for (let d = 0; a.length && b.length && d <= MAX_EDITS; d += 1) {
		trace.push(new Map(reach));
		for (let k = -d; k <= d; k += 2) {
			let x = fromAbove(k, d, reach) ? reach.get(k + 1) : reach.get(k - 1) + 1;
			while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
			reach.set(k, x);
			if (x >= a.length && x - k >= b.length) return walkBack(d);
		}
	}
	return [...a.map((text) => ['-', text]), ...b.map((text) => ['+', text])];

	function walkBack(last) {
		const steps = [];
		let [x, y] = [a.length, b.length];
		for (let d = last; d > 0; d -= 1) {
			const k = x - y;
			const above = fromAbove(k, d, trace[d]);
			const fromX = trace[d].get(above ? k + 1 : k - 1);
			const fromY = fromX - (above ? k + 1 : k - 1);
			for (; x > fromX + !above && y > fromY + above; x -= 1, y -= 1) steps.push([' ', a[x - 1]]);
			steps.push(above ? ['+', b[fromY]] : ['-', a[fromX]]);
			[x, y] = [fromX, fromY];
		}
		for (; x > 0; x -= 1) steps.push([' ', a[x - 1]]);
		return steps.reverse();
	}
}

function statView(rows) {
	const [added, removed] = ['+', '-'].map((wanted) => rows.filter(({ sign }) => sign === wanted).length);
	return h('span.stat', { role: 'img', 'aria-label': `${plural(added, 'line')} added, ${removed} removed` }, h('span.plus', { text: `+${added}` }), removed > 0 && h('span.minus', { text: `−${removed}` }));
}

/** Hunks with some lines of context; a long diff is cut, with a way to see the rest. Paths below `cwd` are told from there. */
export function diffView({ path = '', oldText, newText }, cwd) {
	const rows = diffLines(oldText, newText);
	const shown = [];
	for (const [index, row] of rows.entries()) {
		const around = rows.slice(Math.max(0, index - CONTEXT), index + CONTEXT + 1);
		if (around.some(({ sign }) => sign !== ' ')) shown.push(row);
		else if (shown.at(-1)?.sign === '@') shown.at(-1).count += 1;
		else shown.push({ sign: '@', count: 1 });
	}
	const body = h('div.diff-body', { tabIndex: 0, role: 'group', 'aria-label': `Changes to ${path}` });
	const draw = (limit) => {
		body.replaceChildren(h('div.diff-rows', {}, shown.slice(0, limit).map(rowView)));
		if (shown.length > limit) body.append(h('button.quiet.wide', { text: `Show ${plural(shown.length - limit, 'more line')}`, onclick: () => draw(Infinity) }));
	};
	draw(MAX_ROWS);
	return h('figure.code', {}, h('figcaption', {}, h('span.path', { text: cwd && path.startsWith(`${cwd}/`) ? path.slice(cwd.length + 1) : path, title: path }), statView(rows)), body);
}

function rowView({ sign, text, line, count }) {
	if (count) return h('div.row.skip', { text: plural(count, 'unchanged line') });
	const name = { '+': '.add', '-': '.del' }[sign] ?? '';
	return h(`div.row${name}`, {}, h('span.no', { 'data-no': line }), h('span.sign', { text: sign }), h('span', { text: text || ' ' }));
}
