// Checks the type of every field that a view uses. No DOM
const MAX_LIST = 500
const MAX_WORDS = 300 // characters of JSON
const MAX_JSON = 100_000 // characters of JSON
const MAX_DEPTH = 100
export const MAX_PATH = 10_000 // characters

export const isRecord = value => typeof value === 'object' && value !== null && !Array.isArray(value)
export const record = value => (isRecord(value) ? value : {})
export const list = value => (Array.isArray(value) ? value : [])
export const records = value => list(value).slice(0, MAX_LIST).filter(isRecord)
const having = (value, name) => records(value).filter(one => typeof one[name] === 'string')
export const number = (value, otherwise = null) => (Number.isFinite(value) ? value : otherwise)
export const string = (value, otherwise = '') => (typeof value === 'string' ? value : otherwise)

export function words(value, otherwise = null) {
	return value == null ? otherwise : pretty(value, typeof value === 'string' ? Infinity : MAX_WORDS)
}

export const identity = value => (typeof value === 'string' ? value : Number.isFinite(value) ? String(value) : null)

export function pretty(value, limit = MAX_JSON) {
	let left = limit
	const clip = text => {
		const cut = text.length > left
		const shown = cut
			? `${text.slice(0, Math.max(0, left))}… (${text.length - Math.max(0, left)} more characters)`
			: text
		left -= text.length
		return shown
	}
	const write = (one, indent) => {
		if (typeof one !== 'object' || one === null) return clip(JSON.stringify(one) ?? String(one))
		const array = Array.isArray(one)
		const [open, close] = array ? '[]' : '{}'
		const keys = Object.keys(one)
		if (!keys.length) return open + close
		if (limit !== Infinity && indent.length > 2 * MAX_DEPTH) return `${open}…${close}`
		const parts = []
		for (const key of keys) {
			if (left <= 0) {
				parts.push(`… (${keys.length - parts.length} more)`)
				break
			}
			left -= indent.length + 4
			parts.push((array ? '' : `${clip(JSON.stringify(key))}: `) + write(one[key], `${indent}  `))
		}
		return `${open}\n${parts.map(part => `${indent}  ${part}`).join(',\n')}\n${indent}${close}`
	}
	return typeof value === 'string' ? clip(value) : write(value, '')
}

const raw = data => ({ type: 'raw', data })
const isText = value => value == null || typeof value === 'string'
const BLOCKS = {
	__proto__: null,
	image: ['data', 'mimeType', 'uri'],
	audio: ['data', 'mimeType', 'uri'],
	resource_link: ['uri', 'name', 'title', 'mimeType'],
	resource: []
}

export function block(value) {
	if (!isRecord(value)) return raw(value)
	const { type, text, size, resource } = value
	if (type === 'text') return typeof text === 'string' ? value : raw(value)
	const fields = typeof type === 'string' && BLOCKS[type]
	if (!fields || !fields.every(name => isText(value[name])) || (size != null && !(Number.isFinite(size) && size >= 0)))
		return raw(value)
	if (type === 'resource' && !(isRecord(resource) && ['uri', 'text', 'mimeType'].every(name => isText(resource[name]))))
		return raw(value)
	return value
}

export function blocks(prompt) {
	if (typeof prompt === 'string') return [{ type: 'text', text: prompt }]
	return prompt == null ? [] : Array.isArray(prompt) ? prompt.map(block) : [raw(prompt)]
}

function part(value) {
	const { type, content, path, oldText, newText } = record(value)
	if (type === 'content') return { type, content: block(content) }
	if (type === 'diff' && typeof newText === 'string' && isText(oldText))
		return { type, path: words(path, ''), oldText: oldText ?? null, newText }
	return type === 'terminal' ? { type } : raw(value)
}

function contents(value) {
	if (!Array.isArray(value)) return value == null ? null : [raw(value)]
	const shown = value.slice(0, MAX_LIST).map(part)
	return value.length > MAX_LIST ? [...shown, raw(`… (${value.length - MAX_LIST} more)`)] : shown
}

// Null means unchanged
export function toolCall({ title, kind, status, content, locations, rawInput, rawOutput }) {
	return {
		title: words(title),
		toolKind: string(kind, null),
		status: string(status, null),
		content: contents(content),
		locations: Array.isArray(locations)
			? having(locations, 'path').map(({ path, line }) => ({ path, ...(Number.isFinite(line) && { line }) }))
			: null,
		input: rawInput,
		output: rawOutput
	}
}

export const options = value =>
	having(value, 'optionId').map(({ optionId, name, kind }) => ({
		optionId,
		name: words(name, optionId),
		kind: string(kind)
	}))

export function question(value) {
	const { mode, message, url, elicitationId, requestedSchema } = record(value)
	const { properties, required } = record(requestedSchema)
	const fields = Object.entries(record(properties)).slice(0, MAX_LIST)
	return {
		message: words(message, ''),
		url: mode === 'url' ? words(url, '') : null,
		elicitationId: identity(elicitationId),
		fields: fields.map(([name, one]) => field(name, record(one), list(required).includes(name)))
	}
}

function field(name, one, required) {
	const { type, title, description, format, default: given } = one
	const { oneOf, anyOf, enum: values } = type === 'array' ? record(one.items) : one
	const offered = [oneOf, anyOf, values && list(values).map(value => ({ const: value }))].find(Array.isArray)
	return {
		name,
		type: string(type),
		title: words(title, name),
		description: words(description, ''),
		format: string(format),
		multiple: type === 'array',
		choices:
			offered &&
			having(offered, 'const').map(({ const: value, ...about }) => ({
				value,
				title: words(about.title, value),
				description: words(about.description, '')
			})),
		required,
		given,
		low: number(one.minLength ?? one.minimum ?? one.minItems),
		high: number(one.maxLength ?? one.maximum ?? one.maxItems)
	}
}

export const planEntries = value =>
	list(value)
		.slice(0, MAX_LIST)
		.map(one => ({
			content: words(isRecord(one) ? one.content : one, ''),
			status: string(record(one).status, 'pending')
		}))

export const commands = value =>
	having(value, 'name').map(({ name, description, input }) => ({
		name,
		description: words(description, ''),
		hint: words(record(input).hint, '')
	}))

const choice = ({ id, modelId, value, name, description }) => {
	const key = identity(id) ?? identity(modelId) ?? identity(value)
	return { id: key, name: words(name, key), description: words(description) }
}
const choices = value =>
	list(value)
		.slice(0, MAX_LIST)
		.map(one => choice(isRecord(one) ? one : { id: one }))
		.filter(({ id }) => id !== null)

export function modes(value) {
	const { currentModeId, availableModes } = record(value)
	return isRecord(value) ? { currentModeId: identity(currentModeId), availableModes: choices(availableModes) } : null
}

export function models(value, current) {
	const { currentModelId, availableModels } = record(value)
	const all = Array.isArray(value) ? value : availableModels
	return value ? { currentModelId: identity(currentModelId ?? current), availableModels: choices(all) } : null
}

export function configOptions(value) {
	const values = ['string', 'boolean', 'number']
	const flat = all =>
		records(all)
			.filter(one => values.includes(typeof one.value))
			.map(({ value: own, name, description }) => ({
				value: own,
				name: words(name, String(own)),
				description: words(description)
			}))
	return having(value, 'id').map(({ id, name, type, category, currentValue, options: all }) => ({
		id,
		name: words(name, id),
		type: string(type),
		category: string(category),
		currentValue: values.includes(typeof currentValue) ? currentValue : null,
		options: records(all).flatMap(one =>
			Array.isArray(one.options) ? [{ heading: words(one.name ?? one.group, '') }, ...flat(one.options)] : flat([one])
		)
	}))
}

export function usage(value) {
	const { context, used, size } = record(value)
	const room = isRecord(context) ? context : { used, size }
	const { amount, currency } = record(record(value).cost)
	const cost = Number.isFinite(amount) ? { amount, currency: string(currency) } : null
	return isRecord(value) ? { used: number(room.used), size: number(room.size), cost } : null
}

export function failure(value) {
	if (value == null) return null
	const { code, message, retryable } = record(value)
	return {
		code: string(code),
		message: isRecord(value) ? words(message, '') : words(value),
		retryable: retryable === true
	}
}

export const titleOf = meta => string(record(meta).title)
