// Shows invisible and reordering characters by their code points. No DOM
import { MAX_PATH, pretty } from './normalise.js'

const MAX_SIGNS = 1000 // as elements
const MAX_GROUPS = 8 // of one run
const MAX_BLANKS = 12 // shown one by one
const KEPT_ACCENTS = 3 // of a heap of combining marks

const HIDDEN = String.raw`\p{Default_Ignorable_Code_Point}\p{Zl}\p{Zp}\p{Cs}\u2800\uFFF9-\uFFFB`
const HEAP = String.raw`(?<heap>[\p{Mn}--\p{Default_Ignorable_Code_Point}]{6,})`
// The first part of each alternative fails fast.
const EMOJI = String.raw`(?=\p{Extended_Pictographic})(?:\p{RGI_Emoji}|.[\uFE0E\uFE0F])|[#*0-9]\uFE0F\u20E3|[\u{E0100}-\u{E01EF}](?<=\p{Script=Han}.)`
const JOINED = 'Arab Syrc Nkoo Mong Deva Beng Guru Gujr Orya Taml Telu Knda Mlym Sinh Khmr Mymr Tibt Thaa Mand'
	.split(' ')
	.map(name => String.raw`\p{scx=${name}}`)
	.join('')
const JOINER = String.raw`[\u200C\u200D](?<=[${JOINED}].)|[\u180B-\u180F](?<=\p{Script=Mongolian}.)`
const control = String.raw`[\p{Cc}--[\n\t\r]]|\r(?!\n)`

const build = (kept, ...signs) => ({
	any: new RegExp(`${signs.join('|')}|\\p{Mn}{6}`, 'v'),
	every: new RegExp(`(?:${signs.join('|')})+|\\p{Mn}{6,}`, 'gv'),
	all: new RegExp(`${kept}|(?<signs>(?:${signs.join('|')})+)|${HEAP}`, 'gv')
})

// Titles, names, paths: all except those that scripts and emoji need
export const TEXT = build(`${EMOJI}|${JOINER}`, control, `[${HIDDEN}]`)
// Code, in which joiners belong to no script
export const CODE = build(EMOJI, control, `[${HIDDEN}]`)
// A command: also unusual blanks
export const EXACT = build(EMOJI, String.raw`[\p{Cc}--[\n\t]]|[\p{Zs}--[ ]]`, `[${HIDDEN}]`)
// Running text: only characters that no language uses
export const PROSE = build(
	EMOJI,
	control,
	String.raw`[\u202D\u202E\u115F\u1160\u3164\uFFA0\p{Cs}\u{E0000}-\u{E0FFF}]|[${HIDDEN}]{4,}`
)

const STRETCH = 2000 // characters examined together

const numberOf = char => `U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}`

function name(run) {
	const groups = []
	for (const char of run) {
		if (groups.at(-1)?.char === char) groups.at(-1).count += 1
		else groups.push({ char, count: 1 })
	}
	const shown = groups.slice(0, MAX_GROUPS).map(({ char, count }) => numberOf(char) + (count > 1 ? ` ×${count}` : ''))
	if (groups.length > MAX_GROUPS) shown.push(`+${groups.length - MAX_GROUPS}`)
	return shown.join(' ')
}

export function pieces(given, mode = TEXT) {
	const text = mode === TEXT ? pretty(given, MAX_PATH) : given
	if (!mode.any.test(text)) return [text]
	const found = []
	let signs = 0
	const put = piece => {
		if (typeof piece === 'string' && typeof found.at(-1) === 'string') found.push(found.pop() + piece)
		else if (piece) found.push(piece)
	}
	// Only stretches with such characters get the slow check,
	for (let at = 0, end; at < text.length; at = end) {
		end = at + STRETCH
		// and none ends within a pair or an emoji.
		// biome-ignore lint/suspicious/noMisleadingCharacterClass: single code units are meant
		while (/[\uD800-\uDFFF\u200D\uFE0F]/.test(text.slice(end - 1, end + 1)) && end < at + 2 * STRETCH) end += 1
		const stretch = text.slice(at, end)
		if (!mode.any.test(stretch)) put(stretch)
		else if (signs < MAX_SIGNS) signs += split(stretch, mode, put)
		else put(stretch.replace(mode.every, run => `[${name(run)}]`))
	}
	return found
}

function split(text, mode, put) {
	let [at, signs] = [0, 0]
	for (const match of text.matchAll(mode.all)) {
		const { signs: run, heap } = match.groups
		if (run === undefined && heap === undefined) continue
		const kept = heap ? [...heap].slice(0, KEPT_ACCENTS).join('') : ''
		put(text.slice(at, match.index) + kept)
		put({ sign: name(run ?? heap.slice(kept.length)) })
		at = match.index + match[0].length
		signs += 1
	}
	put(text.slice(at))
	return signs
}

export const spell = (text, mode = TEXT) =>
	pieces(String(text ?? ''), mode)
		.map(one => (typeof one === 'string' ? one : `[${one.sign}]`))
		.join('')

export function exactPieces(text) {
	return text
		.split(/(\n{4,}|\n|\t| {2,}|^ | $| (?=[\n\t]))/)
		.filter(Boolean)
		.flatMap(piece => {
			if (/^\n{4,}$/.test(piece)) return { blank: '\n', sign: `↵ ×${piece.length}` }
			if (piece === '\n') return { blank: '\n', sign: '↵' }
			if (piece === '\t') return { blank: '\t', sign: '→' }
			if (!/^ +$/.test(piece)) return pieces(piece, EXACT)
			return piece.length > MAX_BLANKS
				? { sign: `blank ×${piece.length}` }
				: { blank: piece, sign: '·'.repeat(piece.length) }
		})
}
