// One row for each session, from the list and from the open sessions
import { app, onScreen } from './context.js'
import { isArchived, isPinned, nameOf, projectOf } from './list.js'
import { records, titleOf } from './normalise.js'
import { storage } from './storage.js'
import { promptParts } from './transcript.js'

export function rowsOfAll() {
	const rows = new Map()
	for (const state of app.list.states.values()) rows.set(state.session_id, listedRow(state))
	for (const [id, { session }] of app.open) {
		const row = rows.get(id) ?? { id, at: session.state?.created_at ?? 0 }
		if (session.synced) rows.set(id, { ...row, ...openRow(session, row) })
	}
	for (const id of storage.unsent()) {
		const text = storage.draft(id) || promptParts(storage.outbox(id)[0]?.prompt).text
		if (!rows.has(id) && !id.startsWith('new'))
			rows.set(id, { id, title: `Not sent: ${text.trim().slice(0, 60)}`, agent: 'draft', at: 0, state: 'idle' })
	}
	for (const row of rows.values()) if (row.unread && row.state === 'idle' && !onScreen(row.id)) row.state = 'finished'
	return [...rows.values()]
}

function listedRow(state) {
	const { session_id: id, pending_permissions: asks, pending_elicitations: questions } = state
	const waits = records(asks).length + records(questions).length > 0
	return {
		id,
		title: titleOf(state.meta),
		agent: state.agent,
		at: state.last_turn_at ?? state.created_at ?? 0,
		state: waits ? 'waiting' : state.state === 'running' ? 'running' : 'idle',
		unread: state.unread > 0 && state.turn_count > 0,
		pinned: isPinned(state),
		archived: isArchived(state),
		project: projectOf(state)
	}
}

// Its own socket has newer facts than the list
function openRow({ agent, title, closed, waiting, running, model, readTo }, { at, unread }) {
	return {
		title,
		agent,
		at: Math.max(at, (model.turns.at(-1)?.startedAt ?? 0) / 1000),
		state: closed ? 'idle' : waiting ? 'waiting' : running ? 'running' : 'idle',
		unread: !running && (readTo === undefined ? unread : model.head > readTo)
	}
}

// The newest first
export function projects() {
	const found = new Map()
	for (const { project, at } of app.rows) {
		if (!project) continue
		const { count = 0, last = 0 } = found.get(project) ?? {}
		found.set(project, { path: project, name: nameOf(project), count: count + 1, last: Math.max(last, at) })
	}
	return [...found.values()].sort((a, b) => b.last - a.last)
}
