// Keeps the list, the title of the page, and the unread marks up to date
import { app, currentEntry } from './context.js'
import { attention, tell, tellOf } from './notify.js'
import { projects, rowsOfAll } from './rows.js'
import { guard } from './views/dom.js'

const ATTEND_EVERY = 250 // ms
const READ_AFTER = 600

let timer
let readTimer = null

export function attendSoon() {
	timer ||= setTimeout(attend, ATTEND_EVERY)
}

export function attend() {
	clearTimeout(timer)
	timer = 0
	const { shell, open, current, view } = app
	if (!shell) return
	for (const entry of open.values()) if (entry.session.synced) guard(() => tell(entry))
	app.rows = rowsOfAll()
	shell.sidebar.update(app.rows, { current, view, more: Boolean(app.list.more) })
	shell.start.setProjects(projects())
	app.panels[view]?.update?.()
	const waiting = app.rows.filter(({ state }) => state === 'waiting')
	const runs = app.rows.some(({ state }) => state === 'running')
	const { session } = currentEntry()
	const one = waiting.find(({ id }) => id === current) ?? waiting[0]
	const words = one ? 'waiting' : session?.running ? 'running' : 'idle'
	attention.show(words, one ? one.title : session?.title, one ? 'waiting' : runs ? 'running' : 'idle')
	if (session && readTimer === null) readTimer = setTimeout(readShown, READ_AFTER)
}

// States from the list; of an open session, its own socket has the newer ones
export function heard(states, live) {
	for (const state of states) {
		const entry = app.open.get(state.session_id)
		if (entry && (live || !entry.session.synced)) entry.session.hear(state)
		else if (live && !entry) tellOf(state)
	}
	attendSoon()
}

function readShown() {
	readTimer = null
	if (document.visibilityState !== 'visible') return
	for (const id of [app.current, ...app.beside]) {
		const { session } = app.open.get(id) ?? {}
		if (session && !session.running) markRead(session)
	}
}

export async function markRead(session) {
	const { id, model, synced } = session ?? {}
	if (!synced || app.api.shared || model.head <= (session.readTo ?? 0)) return
	const known = session.readTo === undefined && app.list.states.get(id)?.unread === 0
	const seq = (session.readTo = model.head)
	if (known) return
	const { unread } = await app.api.read(id, seq).catch(() => ({ unread: undefined }))
	// A newer state has counted more
	if (unread !== undefined && !(app.list?.states.get(id)?.head > seq)) app.list?.hear({ session_id: id, unread })
}
