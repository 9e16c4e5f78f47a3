// Colours, \r, \b and erasures of terminal output. No DOM
import { createAnsiSequenceParser, createColorPalette, namedColors } from 'ansi-sequence-parser'

const MAX_PENDING = 4096
const DARK = '#1c1a18'
const LIGHT = '#e6e1d8'
const NAMED =
	'#958d82 #f08a80 #8fd19e #e8c37a #8fb9f5 #d8a1e6 #86d3d6 #e6e1d8 ' +
	'#a8a095 #ff9f94 #a5e6b3 #fad58d #a9cbff #e9b8f5 #9ee9ec #ffffff'
const STYLES = {
	bold: { fontWeight: '700' },
	dim: { opacity: '0.75' },
	italic: { fontStyle: 'italic' },
	hidden: { visibility: 'hidden' }
}
const LINES = { underline: 'underline', overline: 'overline', strikethrough: 'line-through' }
const palette = createColorPalette(
	/** @type {any} */ (
		Object.fromEntries(namedColors.map((name, index) => [name, NAMED.slice(8 * index, 8 * index + 7)]))
	)
)

const CONTROL =
	/(?:\x1b\[|\x9b)([0-9;:?<=>]*)[ -/]*([@-~])|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)|\x1b[ -/]*[0-OQ-WYZ\\`-~]/g
const UNFINISHED = /(?:\x1b\[|\x9b)[0-9;:?<=>]*[ -/]*$|\x1b[\]PX^_][^\x07\x1b\x9c]*\x1b?$|\x1b[ -/]*$/

export const plain = text => text.replace(CONTROL, '')

// One sequence for each code: the library misreads several in one
function sequences(params) {
	const codes = params.split(';').map(code => code || '0')
	const found = []
	while (codes.length) {
		// 38:2::255:0:0, and underlines have styles: 4:3.
		let [code, ...rest] = codes.shift().split(':')
		if (code === '38' || code === '48' || code === '58') {
			if (!rest.length) rest = codes.splice(0, codes[0] === '2' ? 4 : codes[0] === '5' ? 2 : 1)
			const colour = rest[0] === '2' ? ['2', ...rest.slice(-3)] : rest.slice(0, 2)
			code = [code, ...colour].join(';')
			if (!/^[34]8;(2;\d{1,3};\d{1,3}|5);\d{1,3}$/.test(code) || colour.some(part => part > 255)) continue
		} else if (code === '4' && rest[0] === '0') code = '24'
		else if (code === '21') code = '4'
		found.push(`\x1b[${code}m`)
	}
	return found.join('')
}

function styleOf({ foreground, background, decorations }) {
	let front = foreground && palette.value(foreground)
	let back = background && palette.value(background)
	if (decorations.has('reverse')) [front, back] = [back ?? DARK, front ?? LIGHT]
	else if (back && (!front || foreground.name === 'black')) front = isLight(back) ? DARK : LIGHT
	/** @type {Props} */
	const style = { ...(front && { color: front }), ...(back && { backgroundColor: back }) }
	for (const name of decorations)
		if (LINES[name]) style.textDecoration = [style.textDecoration, LINES[name]].filter(Boolean).join(' ')
	return Object.assign(style, ...[...decorations].map(name => STYLES[name]))
}

function isLight(colour) {
	const [red, green, blue] = [1, 3, 5].map(at => Number.parseInt(colour.slice(at, at + 2), 16))
	return red * 0.3 + green * 0.59 + blue * 0.11 > 140
}

export class Screen {
	onLine
	parser
	constructor(onLine) {
		Object.assign(this, { onLine, pending: '', codes: '', parser: createAnsiSequenceParser() })
		this.#newLine()
	}

	write(text) {
		const all = this.pending + text
		this.pending = UNFINISHED.exec(all)?.[0] ?? ''
		const whole = all.slice(0, all.length - this.pending.length)
		if (this.pending.length > MAX_PENDING) this.pending = ''
		let at = 0
		for (const match of whole.matchAll(CONTROL)) {
			this.#print(whole.slice(at, match.index))
			at = match.index + match[0].length
			this.#control(match[1], match[2])
		}
		this.#print(whole.slice(at))
		this.onLine(this.line, false)
	}

	#control(params, name) {
		const { line } = this
		const count = Math.min(Number(params) || 1, 10_000)
		if (name === 'm' && !/[?<=>]/.test(params)) this.codes += sequences(params)
		else if (name === 'D') line.column = Math.max(0, line.column - count)
		else if (name === 'G') line.column = Math.min(line.length, count - 1)
		else if (name === 'K') this.#erase(Number(params) || 0)
	}

	#erase(how) {
		const { line } = this
		if (how === 1) this.#cut(0, line.column, ' '.repeat(line.column))
		else this.#cut(how === 0 ? line.column : 0, line.length, '')
		if (how === 2) line.column = 0
	}

	#print(text) {
		for (const [piece] of text.matchAll(/[\n\r\b]|[^\n\r\b]+/g)) {
			const { line } = this
			if (piece === '\n') this.#newLine()
			else if (piece === '\r') line.column = 0
			else if (piece === '\b') line.column = Math.max(0, line.column - 1)
			else {
				const plain = piece.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, '')
				if (plain) this.#put(plain)
			}
		}
	}

	#put(text) {
		const { line } = this
		const [token] = this.parser.parse(this.codes + text)
		if (this.codes) this.style = styleOf(token)
		this.codes = ''
		const end = line.column + text.length
		if (line.column < line.length) {
			this.#cut(line.column, Math.min(line.length, end), text)
		} else {
			line.runs.push({ text, style: this.style })
			line.length = end
		}
		line.column = end
	}

	#cut(from, to, text) {
		const { line } = this
		const runs = [[], []]
		let at = 0
		for (const run of line.runs) {
			const pieces = [run.text.slice(0, Math.max(0, from - at)), run.text.slice(Math.max(0, to - at))]
			for (const side of [0, 1]) if (pieces[side]) runs[side].push({ ...run, text: pieces[side] })
			at += run.text.length
		}
		if (text) runs[0].push({ text, style: this.style })
		Object.assign(line, { runs: runs.flat(), rewritten: true, length: line.length - (to - from) + text.length })
	}

	#newLine() {
		if (this.line) this.onLine(this.line, true)
		this.line = { runs: [], length: 0, column: 0, rewritten: false }
	}
}
