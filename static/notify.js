// Says, in the page and in notifications, that an agent waits, works or has finished
import { app } from './context.js'
import { records, titleOf } from './normalise.js'
import { storage } from './storage.js'
import { textOf } from './transcript.js'
import { Attention } from './views/attention.js'
import { titleOf as titleOfCall, titleOfRequest } from './views/calltitle.js'

export const attention = new Attention()

function notify(id, words, body) {
	const { notify: wanted, push } = storage.preferences()
	if (wanted && !push) attention.notify(words, body, () => app.go(id))
}

export function tell(entry) {
	const { session, seen } = entry
	const { id, agent, model, running, title } = session
	const turns = model.turns.length
	entry.seen = { running, turns, waiting: new Set(model.waiting.keys()) }
	if (!seen) return
	const asked = [...model.waiting.values()].filter(({ requestId }) => !seen.waiting.has(requestId))
	for (const { call, options } of asked.slice(-1)) {
		const what = titleOfCall(call)
		attention.say(`${agent} ${options ? 'asks for your permission' : 'asks you'}: ${what}`, true)
		notify(id, `${agent} waits for you`, what || title)
	}
	if (running && !seen.running) attention.say(`${agent} is working.`)
	if (running || !(seen.running || turns > seen.turns)) return
	const turn = model.turns.at(-1)
	const answer = textOf(turn.items.findLast(({ kind }) => kind === 'message')?.parts)
	attention.say(
		turn.stopReason === 'end_turn'
			? `${agent} has finished. ${answer.slice(0, 600)}`
			: `The turn has ended: ${turn.error?.message ?? turn.stopReason}`
	)
	notify(id, `${agent} has finished`, title)
}

const told = new Map()

// The same for a session that is not open
export function tellOf(state) {
	const { session_id: id, agent, meta, pending_permissions: asks, state: name } = state
	const before = told.get(id)
	const waits = records(asks).length
	told.set(id, { waits, name })
	if (!before) return
	if (waits > before.waits) {
		const what = titleOfRequest(records(asks).at(-1).request) || titleOf(meta)
		attention.say(`${agent} asks for your permission: ${what}`, true)
		notify(id, `${agent} waits for you`, what)
	} else if (before.name === 'running' && name === 'idle') notify(id, `${agent} has finished`, titleOf(meta))
}
