// Without storage, data stays in memory and the sign-in in the history entry
import { isRecord } from './normalise.js'

const PREFIX = 'clawdforge:'
const TAB = 'sessionStorage'
const KEPT = 'localStorage'
const MAX_KEPT = 100_000 // characters
const memory = new Map()

function read(area, key) {
	if (memory.has(area + key)) return memory.get(area + key)
	try {
		return JSON.parse(globalThis[area].getItem(PREFIX + key))
	} catch {
		return null
	}
}

function write(area, key, value) {
	memory.delete(area + key)
	try {
		if (value == null) globalThis[area].removeItem(PREFIX + key)
		else globalThis[area].setItem(PREFIX + key, JSON.stringify(value))
		return true
	} catch {
		memory.set(area + key, value)
		return false
	}
}

function keysOf(start) {
	let stored = []
	try {
		stored = Object.keys(globalThis[TAB])
	} catch {}
	const own = [...stored, ...[...memory.keys()].map(key => key.replace(TAB, PREFIX))]
	return [...new Set(own)].filter(key => key.startsWith(PREFIX + start)).map(key => key.slice((PREFIX + start).length))
}

const given = () => history.state?.token ?? null
const give = token => history.replaceState({ ...history.state, token: token ?? undefined }, '')
const text = value => (typeof value === 'string' ? value : null)

export const storage = {
	token: () => text(read(TAB, 'token')) ?? text(read(KEPT, 'token')) ?? text(given()),
	kept: token => token !== '' && read(KEPT, 'token') === token,
	saveToken(token, keep) {
		let taken = write(TAB, 'token', keep ? null : token)
		if (keep !== undefined) taken = write(KEPT, 'token', keep ? token : null) && taken
		if (!taken || given() !== null) give(taken ? null : token)
	},
	get inHistory() {
		return given() !== null
	},
	preferences() {
		const found = read(KEPT, 'preferences')
		return isRecord(found) ? found : {}
	},
	savePreferences: changes => write(KEPT, 'preferences', { ...storage.preferences(), ...changes }),
	// A tab has drafts of its own; the text of the last one also survives the tab
	draft: (id, part = 'draft') => read(TAB, `${part}:${id}`) ?? (part === 'draft' ? read(KEPT, `draft:${id}`) : null),
	saveDraft(id, value, part = 'draft') {
		const kept = value?.length === 0 ? null : value
		write(TAB, `${part}:${id}`, kept)
		if (part === 'draft' && (kept === null || kept.length < MAX_KEPT)) write(KEPT, `draft:${id}`, kept)
	},
	forget(id) {
		for (const part of ['draft', 'attached', 'outbox', 'choices', 'comments']) write(TAB, `${part}:${id}`, null)
		write(KEPT, `draft:${id}`, null)
	},
	outbox(id) {
		const found = read(TAB, `outbox:${id}`)
		return Array.isArray(found) ? found.filter(isRecord) : []
	},
	saveOutbox: (id, prompts) => write(TAB, `outbox:${id}`, prompts.length ? prompts : null),
	unsent: () => [
		...new Set(['draft:', 'attached:', 'outbox:'].flatMap(part => keysOf(part).filter(id => read(TAB, part + id))))
	]
}
