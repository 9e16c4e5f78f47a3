// Opens, creates and drops sessions, each with its view
import { attendSoon } from './attend.js'
import { app, draftOf, onScreen } from './context.js'
import { conversations, SessionView } from './parts.js'
import { Session } from './session.js'
import { storage } from './storage.js'
import { toast } from './views/dialogs.js'
import { Wire } from './wire.js'

const KEPT_OPEN = 8

export function openSession(id, state = app.list.states.get(id)) {
	const { open, api, actions } = app
	if (open.has(id)) return open.get(id)
	const url = app.addressOf(`/sessions/${encodeURIComponent(id)}/ws`).replace('http', 'ws')
	const session = new Session(id, state, { api, storage, Wire, url })
	const view = new SessionView(session, {
		upload: app.shell.upload,
		draft: draftOf(id),
		on: {
			showSidebar: app.showSidebar,
			startNew: () => app.go(null),
			sendAnew: message => createLike(session, message),
			reopen: () => session.reopen().then(reopened => app.list.hear(reopened)),
			entries: () => app.menuOf(session),
			turnEntries: actions.turnEntries,
			policies: () => actions.policies(id),
			keep: () => actions.keep(id),
			login: () => app.show('agents'),
			files: (folder, levels) => api.files(id, folder, levels),
			focused: () => focusPane(id),
			closePane: () => app.closePane(id),
			compare: () => app.show('compare', session.state.meta.compare),
			review: () => {
				focusPane(id)
				app.showSide('changes')
			},
			openFile: async uri => {
				if (api.shared) return
				focusPane(id)
				await app.showSide('changes', true)
				app.shell.sides.changes.openFile(uri)
			}
		}
	})
	session.on('change', attendSoon)
	session.on('problem', toast)
	open.set(id, { session, view, seen: null })
	session.start()
	if (!state) session.look()
	return open.get(id)
}

// Keeps the newest sessions open, and those that still have something to send
export function retire(entry) {
	const { open } = app
	open.delete(entry.session.id)
	open.set(entry.session.id, entry)
	for (const [id, { session, view }] of open) {
		if (open.size <= KEPT_OPEN) break
		if (onScreen(id) || session.running || session.outbox.size || view.composer.attachments.blocked) continue
		drop(id)
	}
}

function drop(id) {
	const entry = app.open.get(id)
	entry?.session.stop()
	entry?.view.el.remove()
	app.open.delete(id)
}

// A session that was deleted
export function forget(id) {
	drop(id)
	app.list.forget(id)
	storage.forget(id)
	if (onScreen(id)) app.closePane(id)
}

// Keys and the frames belong to the pane that has the focus
function focusPane(id) {
	if (app.current === id || !app.beside.includes(id)) return
	const order = [app.current, ...app.beside]
	Object.assign(app, { current: id, beside: order.filter(one => one !== id) })
	attendSoon()
}

// Shows the new session only if the user is still at `from`
export async function create(options, { prompt, files }, from = null) {
	await conversations()
	const state = await made(options)
	openSession(state.session_id, { ...options, ...state }).session.send({ prompt, files })
	if (app.current === from && !app.view) app.go(state.session_id)
}

// Conversations stay until they are deleted
export async function made(options) {
	const all = { retention_secs: null, elicitation: 'ask', client_capabilities: ['subagents'], ...options }
	const { elicitation, client_capabilities: _, ...fewer } = all
	const state = await app.api
		.create(all)
		.catch(error => (error.code === 'not_supported' ? app.api.create(fewer) : Promise.reject(error)))
	app.list.hear(state)
	return state
}

// The same prompt to several agents, side by side
export async function compare(options, agents, { prompt, files }) {
	const group = crypto.getRandomValues(new Uint32Array(1))[0].toString(36)
	await conversations()
	const asked = agents.map(agent => made({ ...options, agent, meta: { compare: group } }))
	const results = await Promise.allSettled(asked)
	const states = results.flatMap(one => (one.status === 'fulfilled' ? one.value : []))
	const [failure] = results.flatMap(one => (one.status === 'rejected' ? one.reason : []))
	if (!states.length) throw failure
	if (failure) toast(failure.message)
	for (const state of states) openSession(state.session_id, state).session.send({ prompt, files })
	const [first, ...others] = states.map(one => one.session_id)
	if (app.wide()) app.go(first, others)
	else app.show('compare', group)
}

async function createLike({ id, state }, message) {
	const { agent, permission, model } = state ?? {} // JSON drops what is undefined
	try {
		await create({ agent, permission, model: model || undefined }, message, id)
		return true
	} catch (error) {
		toast(error.message)
		return false
	}
}
