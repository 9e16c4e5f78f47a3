import { record, toolCall } from '../normalise.js'
import { shortPath } from './format.js'

export function titleOf({ title, toolKind, locations }) {
	const words = title
		.trim()
		.replace(/^`+|`+$/g, '')
		.trim()
		.replace(/[^\S\n]+/g, ' ')
		.replace(/ ?\n+ ?/g, ' ↵ ')
	return words || `${toolKind} ${shortPath(locations[0]?.path)}`
}

// Of a request as the list of sessions has it
export function titleOfRequest(request) {
	const { title, toolKind, locations } = toolCall(record(record(request).toolCall))
	return title || locations?.length
		? titleOf({ title: title ?? '', toolKind: toolKind ?? '', locations: locations ?? [] })
		: ''
}
