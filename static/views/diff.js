/** What changed between two texts, by lines, and how to show it. */
import { h, setText, template } from './dom.js';
import { plural } from './format.js';

const CONTEXT = 3;
const MAX_CELLS = 1_000_000; // pairs of lines compared; where there are more, all is replaced
const MAX_ROWS = 400;

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

/** By the longest common subsequence, from a table of its lengths for each pair of tails. */
function edits(a, b) {
	const width = b.length + 1;
	const small = a.length * b.length <= MAX_CELLS;
	const lengths = new Uint32Array(small ? (a.length + 1) * width : 0);
	for (let i = a.length - 1; small && i >= 0; i -= 1) {
		for (let j = b.length - 1; j >= 0; j -= 1) {
			const at = i * width + j;
			lengths[at] = a[i] === b[j] ? lengths[at + width + 1] + 1 : Math.max(lengths[at + width], lengths[at + 1]);
		}
	}
	const steps = [];
	let [i, j] = [0, 0];
	while (i < a.length || j < b.length) {
		const at = i * width + j;
		const both = small && i < a.length && j < b.length;
		if (both && a[i] === b[j]) {
			steps.push([' ', a[i]]);
			i += 1;
			j += 1;
		} else if (i < a.length && (!both || lengths[at + width] >= lengths[at + 1])) {
			steps.push(['-', a[i]]);
			i += 1;
		} else {
			steps.push(['+', b[j]]);
			j += 1;
		}
	}
	return steps;
}

/** Hunks with some lines of context; a long one is cut. Paths are told from `cwd`. */
export function diffView({ path = '', oldText, newText }, cwd) {
	const rows = diffLines(oldText, newText);
	const shown = [];
	for (const [index, row] of rows.entries()) {
		const around = rows.slice(Math.max(0, index - CONTEXT), index + CONTEXT + 1);
		if (around.some(({ sign }) => sign !== ' ')) shown.push(row);
		else if (shown.at(-1)?.count) shown.at(-1).count += 1;
		else shown.push({ count: 1 });
	}
	const { el, name, stat, plus, minus, body } = template('diff');
	const [added, removed] = ['+', '-'].map((wanted) => rows.filter(({ sign }) => sign === wanted).length);
	stat.ariaLabel = `${plural(added, 'line')} added, ${removed} removed`;
	setText(plus, `+${added}`);
	setText(minus, `−${removed}`);
	minus.hidden = !removed;
	name.title = path;
	setText(name, cwd && path.startsWith(`${cwd}/`) ? path.slice(cwd.length + 1) : path);
	body.ariaLabel = `Changes to ${path}`;
	const draw = (limit) => {
		body.replaceChildren(h('div.diff-rows', {}, shown.slice(0, limit).map(rowView)));
		if (shown.length > limit) body.append(h('button.quiet.wide', { text: `Show ${plural(shown.length - limit, 'more line')}`, onclick: () => draw(Infinity) }));
	};
	draw(MAX_ROWS);
	return el;
}

function rowView({ sign, text, line, count }) {
	if (count) return h('div.row.gap', { text: plural(count, 'unchanged line') });
	const name = { '+': '.add', '-': '.del' }[sign] ?? '';
	return h(`div.row${name}`, {}, h('span.no', { 'data-no': line }), h('span.sign', { text: sign }), h('span', { text: text || ' ' }));
}
