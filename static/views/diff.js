import { diffArrays } from 'diff/lib/diff/array.js'
import { diffWordsWithSpace } from 'diff/lib/diff/word.js'
import { spell } from '../marks.js'
import { MAX_PATH, pretty } from '../normalise.js'
import { MAX_COLOURED, tokensOf } from './code.js'
import { moveByKeys } from './comments.js'
import { exactNodes, h, refill, say, setText, template, whenNear } from './dom.js'
import { languageOf, plural } from './format.js'

const CONTEXT = 3
const MAX_ROWS = 400 // at first
const MAX_EDITS = 3000 // lines; a larger difference is shown as a full replacement
const TIME = 40 // ms; likewise
const MAX_DIFF = 400_000 // characters
const MAX_MARKED = 1000 // characters of a line
const MARKED_TIME = 30 // ms for the marks of one difference
const ENDS = { '\r\n': 'CRLF', '\n': 'LF', '\r': 'CR' }

function linesOf(text) {
	if (typeof text !== 'string') return []
	return [...text.matchAll(/([^\r\n]*)(\r\n|\n|\r|$)/g)]
		.map(([, line, end]) => ({ text: line, end }))
		.filter(({ text: line, end }) => line || end)
}

// ends: [[from, to, count]] of line ends that changed in lines that did not
export function compare(oldText, newText) {
	const [a, b] = [linesOf(oldText), linesOf(newText)]
	// A missing line end makes another line.
	const [left, right] = [a, b].map(lines => lines.map(({ text, end }) => (end ? text : `${text}\r`)))
	let start = 0
	while (start < left.length && start < right.length && left[start] === right[start]) start += 1
	let tail = 0
	while (tail < Math.min(left.length, right.length) - start && left.at(-1 - tail) === right.at(-1 - tail)) tail += 1
	const middle = [left.slice(start, left.length - tail), right.slice(start, right.length - tail)]
	const parts = diffArrays(middle[0], middle[1], { timeout: TIME, maxEditLength: MAX_EDITS }) ?? [
		{ count: middle[0].length, removed: true },
		{ count: middle[1].length, added: true }
	]
	const rows = []
	const changed = new Map()
	let [i, j] = [0, 0]
	for (const { count, added, removed } of [{ count: start }, ...parts, { count: tail }]) {
		for (let n = 0; n < count; n += 1) {
			const [before, after] = [added ? null : a[i], removed ? null : b[j]]
			if (before) i += 1
			if (after) j += 1
			const { text, end } = after ?? before
			rows.push({ sign: added ? '+' : removed ? '-' : ' ', text, line: after ? j : i, ...(!end && { unended: true }) })
			if (!before || !after || before.end === after.end) continue
			const key = before.end + after.end
			if (!changed.has(key)) changed.set(key, [ENDS[before.end], ENDS[after.end], 0])
			changed.get(key)[2] += 1
		}
	}
	return { rows, ends: [...changed.values()] }
}

export function diffView({ path = '', oldText, newText }, cwd) {
	const { rows, ends } = compare(oldText && pretty(oldText, MAX_DIFF), pretty(newText, MAX_DIFF))
	/** @type {Props[]} */
	const shown = ends.map(([from, to, count]) => ({
		note: `Line ends changed: ${from} → ${to} (${plural(count, 'line')})`
	}))
	if (oldText == null) shown.push({ note: newText ? 'New file' : 'New file, empty' })
	else if (oldText && !newText) shown.push({ note: say('all') })
	else if (!ends.length && rows.every(({ sign }) => sign === ' ')) shown.push({ note: 'No difference' })
	pairLines(rows)
	const near = new Uint8Array(rows.length)
	for (const [index, { sign }] of rows.entries())
		if (sign !== ' ') near.fill(1, Math.max(0, index - CONTEXT), index + CONTEXT + 1)
	for (const [index, row] of rows.entries()) {
		if (near[index]) shown.push(row)
		else if (shown.at(-1)?.folded) shown.at(-1).folded.push(row)
		else shown.push({ folded: [row] })
	}
	const { el, name, stat, plus, minus, body } = template('diff')
	const [added, removed] = ['+', '-'].map(wanted => rows.filter(({ sign }) => sign === wanted).length)
	counts({ stat, plus, minus }, added, removed)
	name.title = spell(path)
	name.append(...exactNodes(pretty(cwd && path.startsWith(`${cwd}/`) ? path.slice(cwd.length + 1) : path, MAX_PATH)))
	body.ariaLabel = spell(`Changes to ${path}`)
	drawRows(body, shown)
	whenNear(body, () => paint(rows, path))
	return el
}

/** @type {(body: HTMLElement, rows: Props[], how?: Props, limit?: number) => void} */
function drawRows(body, rows, how = {}, limit = MAX_ROWS) {
	const until = performance.now() + MARKED_TIME
	for (const row of rows) row.cells = []
	const views = rows.slice(0, limit).flatMap(row => rowView(row, until, how))
	const left = rows.length - limit
	const more = () => drawRows(body, rows, how, limit * 5)
	refill(
		body,
		h('div.diff-rows', {}, views),
		left > 0 ? h('button.quiet.wide', { text: `Show ${plural(left, 'more line')}`, onclick: more }) : ''
	)
	moveByKeys(body)
}

/** @param {any} view */
export function counts({ stat, plus, minus }, added, removed) {
	stat.ariaLabel = `${plural(added, 'line')} added, ${removed} removed`
	setText(plus, `+${added}`)
	setText(minus, `−${removed}`)
	plus.hidden = !added
	minus.hidden = !removed
}

// Of rows that a unified diff has; `how` has `split`, and the number and the box of a row that takes comments
/** @type {(rows: Props[], path: string, how?: Props) => Element} */
export function rowsView(rows, path, how) {
	pairLines(rows)
	const body = h('div.diff-body', { tabIndex: 0, role: 'group', label: 'Lines' })
	drawRows(body, rows, how)
	whenNear(body, () => paint(rows, path))
	return body
}

// Colours both sides, if they are short enough
async function paint(rows, path) {
	const language = languageOf(path)
	for (const other of ['+', '-']) {
		const side = rows.filter(({ sign }) => sign && sign !== other)
		const text = side.map(row => row.text).join('\n')
		if (!language || text.length > MAX_COLOURED) return
		const lines = linesOfTokens((await tokensOf(text, language)) ?? [])
		for (const [index, row] of side.entries()) {
			row.tokens = lines[index]
			for (const cell of row.cells?.splice(0) ?? []) cell.replaceWith(cellOf(row))
		}
	}
}

function linesOfTokens(tokens) {
	const lines = [[]]
	for (const [name, text] of tokens)
		for (const [index, part] of text.split('\n').entries()) {
			if (index) lines.push([])
			if (part) lines.at(-1).push([name, part])
		}
	return lines
}

// With the colours of the language, and marks on what changed within the line
/** @type {(row: Props, until?: number) => Element} */
function cellOf(row, until) {
	const { text, tokens } = row
	row.marked ??= marks(/** @type {any} */ (row), until)
	const known = tokens?.map(([, part]) => part).join('') === text
	const cell = h('span', {}, text ? overlay(row.marked, known ? tokens : [[null, text]]).map(wordView) : ' ')
	row.cells ??= []
	row.cells.push(cell)
	return cell
}

const wordView = ([part, name, changed]) =>
	name || changed ? h('span', { class: [name, changed && 'changed'].filter(Boolean).join(' '), text: part }) : part

/** @returns {any[][]} [text, class of its colour, whether it changed] */
export function overlay(marked, tokens) {
	const parts = []
	let [at, used] = [0, 0]
	for (const [text, changed] of marked)
		for (let left = text; left; ) {
			const [name, whole] = tokens[at]
			const part = whole.slice(used, used + left.length)
			parts.push([part, name, changed])
			left = left.slice(part.length)
			used += part.length
			if (used === whole.length) [at, used] = [at + 1, 0]
		}
	return parts
}

function pairLines(rows) {
	for (let at = 0; at < rows.length; ) {
		const run = sign => {
			const begun = at
			while (rows[at]?.sign === sign) at += 1
			return rows.slice(begun, at)
		}
		const gone = run('-')
		const come = run('+')
		for (let n = 0; n < Math.min(gone.length, come.length); n += 1) [gone[n].pair, come[n].pair] = [come[n], gone[n]]
		if (!gone.length && !come.length) at += 1
	}
}

export function marks({ sign, text, pair }, until = Infinity) {
	const whole = [[text, false]]
	if (!pair || text.length + pair.text.length > 2 * MAX_MARKED || performance.now() > until) return whole
	const [before, after] = sign === '-' ? [text, pair.text] : [pair.text, text]
	const parts = diffWordsWithSpace(before, after, { timeout: TIME, maxEditLength: 200 })
	const mine = parts?.filter(({ added, removed }) => (sign === '-' ? !added : !removed)) ?? []
	const kept = mine
		.filter(({ added, removed }) => !added && !removed)
		.reduce((sum, { value }) => sum + value.trim().length, 0)
	if (!mine.length || kept * 3 < text.trim().length) return whole
	return mine.map(({ value, added, removed }) => [value, Boolean(added || removed)])
}

/** @type {(row: Props, until?: number, how?: Props) => any} */
function rowView(row, until, how = {}) {
	const { sign, note, folded, unended, pair } = row
	if (note) return h('div.row.gap', { text: note })
	if (folded)
		return h('button.row.gap', {
			text: plural(folded.length, 'unchanged line'),
			onclick: ({ currentTarget }) =>
				currentTarget.replaceWith(...folded.slice(0, MAX_ROWS * 5).flatMap(one => rowView(one)))
		})
	const end = unended && sign !== ' ' && h('div.row.gap', { text: say('no_line') })
	if (!how.split) return [lineView(row, until, how), how.box?.(row), end].filter(Boolean)
	// It stands beside the line that it replaces
	if (sign === '+' && pair) return [end].filter(Boolean)
	const sides = {
		'-': [row, pair],
		'+': [null, row],
		' ': [{ ...row, line: row.old, still: true }, row]
	}[sign].map(one => (one ? lineView(one, until, how) : h('div.row')))
	return [h('div.pair', {}, sides), how.box?.(row), pair && how.box?.(pair), end].filter(Boolean)
}

/** @type {(row: Props, until?: number, how?: Props) => any} */
function lineView(row, until, { number } = {}) {
	const { sign, line, still } = row
	const name = { '+': '.add', '-': '.del' }[sign] ?? ''
	return h(
		`div.row${name}`,
		{},
		number && !still ? number(row) : h('span.no', { 'data-no': line }),
		h('span.sign', { text: sign }),
		cellOf(row, until)
	)
}
