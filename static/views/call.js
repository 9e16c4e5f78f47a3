import { MAX_PATH, pretty } from '../normalise.js'
import { codeBlock, exactBlock } from './code.js'
import { commandOf } from './command.js'
import { contentBlock, fileChip } from './content.js'
import { diffView } from './diff.js'
import { exactNodes, guard, h, hint, icon, jsonNodes, say } from './dom.js'
import { shortPath } from './format.js'
import { MarkdownView } from './markdown.js'

export const hasDiff = ({ content }) => content.some(({ type }) => type === 'diff')

const MAX_TOLD = 60_000 // characters
export function contentView(one, cwd) {
	if (one.type === 'diff') return diffView(one, cwd)
	if (one.type === 'terminal') return hint(say('the_output'))
	if (one.type !== 'content') return contentBlock(one)
	return one.content.type === 'text'
		? new MarkdownView(pretty(one.content.text, MAX_TOLD)).el
		: contentBlock(one.content)
}

export const locationsView = list =>
	h(
		'p.chips.hint',
		{},
		list.map(({ path, line }) => fileChip(shortPath(path) + (line ? `:${line}` : ''), path))
	)

export const section = label => value =>
	h('div', {}, hint(label), codeBlock(pretty(value), typeof value === 'string' ? '' : 'json').el)

const TOLD = new Set(['command', 'cmd', 'description'])

// Relevant input is neither cut nor folded
export function askedFor(call, cwd) {
	const { title, toolKind, content, locations, input } = call
	const command = commandOf(call)
	const places = locations.filter(
		({ path }) => (!title.includes(path) || /[^\0-\x7F]/.test(path)) && !content.some(one => one.path === path)
	)
	const told = command && Object.keys(input).every(name => TOLD.has(name)) && !('command' in input && 'cmd' in input)
	const whole = () => exactBlock(pretty(input, Infinity), 'Input', jsonNodes)
	const parts = [
		title.trim() !== command.trim() &&
			(toolKind === 'execute' && !command ? exactBlock(title) : h('p.asked', { text: title })),
		places.map(({ path, line }) =>
			h('p.asked.path-whole', {}, exactNodes(pretty(path, MAX_PATH) + (line ? `:${line}` : '')))
		),
		command && exactBlock(command),
		content.map(one =>
			guard(
				() => contentView(one, cwd),
				() => codeBlock(pretty(one, Infinity), 'json').el
			)
		)
	]
	if (input !== undefined && !told)
		parts.push(hasDiff(call) ? h('details.raw', {}, h('summary', {}, icon('frames'), say('full')), whole()) : whole())
	return parts
}
