import { Api, addressOf } from './api.js'
import { titleOf } from './normalise.js'
import { Session } from './session.js'
import { storage } from './storage.js'
import { promptParts, textOf } from './transcript.js'
import { Attention } from './views/attention.js'
import { titleOf as titleOfCall } from './views/call.js'
import { ask, toast } from './views/dialogs.js'
import { guard, template } from './views/dom.js'
import { FramesView } from './views/frames.js'
import { SessionView } from './views/sessionview.js'
import { Sidebar } from './views/sidebar.js'
import { signInView } from './views/signin.js'
import { StartView } from './views/start.js'
import { Wire } from './wire.js'

const KEPT_OPEN = 8
const LIST_EVERY = 15_000 // ms
const LOOK_EVERY = 1000 // other clients may queue prompts
const ATTEND_EVERY = 250

const root = document.getElementById('app')
const tabs = guard(() => new BroadcastChannel('clawdforge')) // may be forbidden, like storage
const attention = new Attention()
const open = new Map() // session id -> {session, view, seen}
let marks = new Map()
let api = null
let shell = null
let current = null
let listed = []
let withClosed = false

const fragment = () => new URLSearchParams(location.hash.slice(1))
const draftOf = id => ({
	read: part => storage.draft(id, part),
	save: (value, part) => storage.saveDraft(id, value, part)
})
const draftOfNew = token => draftOf(`new-${markOf(token)}`)
const narrow = matchMedia('(max-width: 760px)')

// A checksum that distinguishes tokens without revealing them
function markOf(token) {
	let mark = 0
	for (const char of token) mark = (Math.imul(mark, 31) + char.charCodeAt(0)) | 0
	return (mark >>> 0).toString(36)
}

async function begin() {
	const given = fragment()
	const share = given.get('share')
	if (share) return resume(share, given.get('session'))
	if (given.has('token')) {
		storage.saveToken(given.get('token'))
		given.delete('token')
		history.replaceState(history.state, '', given.size ? `#${given}` : location.pathname)
	}
	const token = storage.token()
	if (token) await resume(token)
	else signIn()
	if (!api) tabs?.postMessage({ wanted: fragment().get('session') })
}

// A tab that lists the session passes its sign-in to a new tab
function hand({ wanted, session, token }) {
	if (wanted && shell && (open.has(wanted) || listed.some(({ session_id: id }) => id === wanted)))
		tabs.postMessage({ session: wanted, token: api.token })
	if (!token || shell || session !== fragment().get('session')) return
	storage.saveToken(token)
	resume(token)
}

const resume = (token, shared) => enter(token, shared).catch(error => signIn(error.message, token))

function signIn(message, token) {
	leave()
	const view = signInView(message, token, storage.kept(token), async (given, keep) => {
		await enter(given)
		storage.saveToken(given, keep)
	})
	root.replaceChildren(view.el)
	view.focus()
}

function signOut(message) {
	storage.saveToken(null, false)
	signIn(message)
}

function leave() {
	for (const { session } of open.values()) session.stop()
	open.clear()
	clearInterval(shell?.poll)
	shell = api = current = null
	attention.show('idle')
}

async function enter(token, shared) {
	const mine = new Api(token, () => api === mine && signOut('This sign-in is no longer valid.'), shared)
	const sessions = await mine.sessions()
	leave()
	api = mine
	listed = sessions
	marks = storage.marks()
	buildShell()
	if (shared) shell.el.classList.add('shared')
	route()
	api.agents().then(
		agents => shell?.start.setAgents(agents),
		() => {}
	)
}

function buildShell() {
	const upload = (...file) => api.upload(...file)
	const sidebar = new Sidebar({
		open: go,
		hide: () => showSidebar(false),
		entries: entriesOf,
		menu: settingsMenu,
		withClosed: on => {
			withClosed = on
			refresh()
		},
		skip: focusMain
	})
	const start = new StartView({
		on: { create, save: choice => storage.savePreferences({ start: choice }), menu: showSidebar },
		upload,
		choice: storage.preferences().start,
		draft: draftOfNew(api.token)
	})
	const frames = new FramesView(() => showFrames(false))
	const { el, veil, main } = template('shell')
	veil.onclick = () => showSidebar(false)
	main.append(start.el)
	el.prepend(sidebar.el)
	el.append(frames.el)
	shell = { el, sidebar, start, frames, main, upload, poll: setInterval(poll, LOOK_EVERY) }
	root.replaceChildren(el)
}

function focusMain() {
	;(open.get(current)?.view ?? shell.start).focus()
}

function showSidebar(on = true) {
	const inside = shell.sidebar.el.contains(document.activeElement)
	shell.el.classList.toggle('menu-open', on)
	shell.main.inert = on && narrow.matches
	if (on) shell.sidebar.focus()
	else if (inside && narrow.matches) shell.main.querySelector(':scope > :not([hidden]) .bar button').focus()
}

function showFrames(on = shell.frames.el.hidden) {
	shell.frames.show(on ? open.get(current)?.session : null)
	if (!on) focusMain()
}

function go(id) {
	const address = id ? `#session=${id}` : location.pathname
	// This entry of the history may hold the sign-in.
	if (id !== current) history[storage.inHistory ? 'replaceState' : 'pushState'](history.state, '', address)
	route()
}

function route() {
	if (!shell) return
	const id = fragment().get('session') || null
	const entry = id && openSession(id)
	const el = entry ? entry.view.el : shell.start.el
	current = id
	if (!el.isConnected) shell.main.append(el)
	for (const child of shell.main.children) child.hidden = child !== el
	showSidebar(false)
	if (entry) retire(entry)
	if (!shell.frames.el.hidden) shell.frames.show(entry?.session)
	entry?.view.scroll.keep()
	// A phone's keyboard would cover the conversation.
	if (!entry || matchMedia('(hover: hover)').matches) focusMain()
	attend()
}

function retire(entry) {
	open.delete(entry.session.id)
	open.set(entry.session.id, entry)
	for (const [id, { session, view }] of open) {
		if (open.size <= KEPT_OPEN) break
		if (session === entry.session || session.running || session.outbox.size || view.composer.attachments.blocked)
			continue
		session.stop()
		view.el.remove()
		open.delete(id)
	}
}

function openSession(id, state = listed.find(one => one.session_id === id)) {
	if (open.has(id)) return open.get(id)
	const url = addressOf(`/sessions/${encodeURIComponent(id)}/ws`).replace('http', 'ws')
	const session = new Session(id, state, { api, storage, Wire, url })
	const entries = () => [
		{ heading: `Works in ${session.state?.cwd ?? 'a folder of its own'}` },
		{ label: 'Raw frames', detail: 'Ctrl `', icon: 'frames', onselect: () => showFrames() },
		...entriesOf(session)
	]
	const view = new SessionView(session, {
		upload: shell.upload,
		draft: draftOf(id),
		on: { showSidebar, startNew: () => go(null), sendAnew: message => createLike(session, message), entries }
	})
	session.on('change', attendSoon)
	session.on('problem', toast)
	open.set(id, { session, view, seen: null })
	session.start()
	if (!state) session.look()
	return open.get(id)
}

// Shows the new session only if the user is still at `from`
async function create(options, { prompt, files }, from = null) {
	const state = await api
		.create({ ...options, elicitation: 'ask' })
		.catch(error => (error.code === 'not_supported' ? api.create(options) : Promise.reject(error)))
	openSession(state.session_id, { ...options, ...state }).session.send({ prompt, files })
	if (current === from) go(state.session_id)
	refresh()
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

const entriesOf = one => [
	{ label: 'Rename…', icon: 'pencil', onselect: () => rename(one) },
	{
		label: 'Close session…',
		icon: 'close',
		danger: true,
		disabled: one.closed ?? one.state === 'closed',
		onselect: () => close(one)
	}
]

async function rename({ id, title = '' }) {
	const name = await ask({ title: 'Rename the session', input: title, action: 'Rename' })
	if (name) attempt(() => open.get(id)?.session.rename(name) ?? api.update(id, { title: name }))
}

async function close({ id, title }) {
	const text = `${title ? `“${title}”: ` : ''}the agent is stopped. The conversation can be read for a while, but not continued.`
	if (await ask({ title: 'Close this session?', text, action: 'Close session', danger: true }))
		attempt(() => api.close(id))
}

async function attempt(action) {
	try {
		await action()
		await refresh()
	} catch (error) {
		toast(error.message)
	}
}

let listedAt = 0

function poll() {
	const { session } = open.get(current) ?? {}
	if (document.visibilityState !== 'visible') return
	if (Date.now() - listedAt >= LIST_EVERY) refresh()
	else if (session?.running) session.look()
}

async function refresh() {
	const mine = api
	listedAt = Date.now()
	const before = new Map([...open.values()].map(({ session }) => [session, session.changes]))
	try {
		const sessions = await mine.sessions(withClosed)
		if (api !== mine) return
		listed = sessions
		for (const state of listed) {
			const session = open.get(state.session_id)?.session
			if (session && session.changes === before.get(session)) session.hear(state)
		}
		for (const { session } of open.values()) if (session.wire.status.state === 'away') session.wire.wake()
		attend()
	} catch {
		if (api === mine) shell?.sidebar.fail('The list could not be refreshed.')
	}
}

function drawList() {
	const rows = new Map()
	for (const {
		session_id: id,
		closed_at: closed,
		pending_permissions: asks,
		pending_elicitations: questions,
		...one
	} of listed) {
		rows.set(id, {
			id,
			title: titleOf(one.meta),
			agent: one.agent,
			at: one.last_turn_at ?? one.created_at,
			state: closed ? 'closed' : asks?.length || questions?.length ? 'waiting' : one.state
		})
	}
	for (const [id, { session, view }] of open) {
		if (!session.synced) continue
		const { agent, title, closed, waiting, running, model } = session
		const { at = session.state?.created_at ?? 0 } = rows.get(id) ?? {}
		rows.set(id, {
			id,
			title,
			agent,
			at: Math.max(at, (model.turns.at(-1)?.startedAt ?? 0) / 1000),
			state: closed ? 'closed' : waiting ? 'waiting' : running ? 'running' : 'idle'
		})
		if (closed && !withClosed && id !== current && !view.unsent && !session.outbox.size) rows.delete(id)
	}
	for (const id of storage.unsent()) {
		const text = storage.draft(id) || promptParts(storage.outbox(id)[0]?.prompt).text
		if (!rows.has(id) && !id.startsWith('new'))
			rows.set(id, { id, title: `Not sent: ${text.trim().slice(0, 60)}`, agent: 'draft', at: 0, state: 'closed' })
	}
	mark(rows)
	shell?.sidebar.update([...rows.values()], current)
	return [...rows.values()]
}

function mark(rows) {
	const before = JSON.stringify([...marks])
	for (const id of marks.keys()) if (!rows.has(id)) marks.delete(id)
	for (const row of rows.values()) {
		const { id, state } = row
		if (state === 'running' || state === 'waiting') marks.set(id, 'running')
		else if (state === 'closed' || id === current) marks.delete(id)
		else if (marks.has(id)) {
			marks.set(id, 'unread')
			row.state = 'finished'
		}
	}
	if (JSON.stringify([...marks]) !== before) storage.saveMarks(marks)
}

let attendTimer

function attendSoon() {
	attendTimer ||= setTimeout(attend, ATTEND_EVERY)
}

function attend() {
	clearTimeout(attendTimer)
	attendTimer = 0
	const entries = [...open.values()].filter(({ session }) => session.synced)
	for (const entry of entries) guard(() => tell(entry))
	const waiting = drawList().filter(({ state }) => state === 'waiting')
	const runs = entries.some(({ session }) => session.running)
	const shown = open.get(current)?.session
	const one = waiting.find(({ id }) => id === current) ?? waiting[0]
	const words = one ? 'waiting' : shown?.running ? 'running' : 'idle'
	attention.show(words, one ? one.title : shown?.title, one ? 'waiting' : runs ? 'running' : 'idle')
}

function tell(entry) {
	const { session, seen } = entry
	const { agent, model, running, title } = session
	const turns = model.turns.length
	entry.seen = { running, turns, waiting: new Set(model.waiting.keys()) }
	if (!seen) return
	const notify = (words, body) => storage.preferences().notify && attention.notify(words, body, () => go(session.id))
	const asked = [...model.waiting.values()].filter(({ requestId }) => !seen.waiting.has(requestId))
	for (const { call, options } of asked.slice(-1)) {
		const what = titleOfCall(call)
		attention.say(`${agent} ${options ? 'asks for your permission' : 'asks you'}: ${what}`, true)
		notify(`${agent} waits for you`, what || title)
	}
	if (running && !seen.running) attention.say(`${agent} is working.`)
	if (running || !(seen.running || turns > seen.turns)) return
	if (session.id !== current) marks.set(session.id, 'unread')
	const turn = model.turns.at(-1)
	const answer = textOf(turn.items.findLast(({ kind }) => kind === 'message')?.parts)
	attention.say(
		turn.stopReason === 'end_turn'
			? `${agent} has finished. ${answer.slice(0, 600)}`
			: `The turn has ended: ${turn.error?.message ?? turn.stopReason}`
	)
	notify(`${agent} has finished`, title)
}

function settingsMenu() {
	const label = storage.preferences().notify ? 'Do not notify me' : 'Notify me in the background'
	return [
		{ heading: 'Ctrl K: find a session. Ctrl Shift O: new session. Ctrl .: next request' },
		{ label, icon: 'bell', onselect: toggleNotify },
		{ label: 'Sign out', icon: 'leave', onselect: () => signOut() }
	]
}

async function toggleNotify() {
	const notify = !storage.preferences().notify && (await globalThis.Notification?.requestPermission()) === 'granted'
	storage.savePreferences({ notify })
	toast(notify ? 'You will be notified when an agent waits for you or has finished.' : 'Notifications are off.')
}

document.addEventListener('keydown', event => {
	if (!shell || event.defaultPrevented || document.querySelector('dialog[open], :popover-open')) return
	const { altKey, ctrlKey, metaKey, repeat, shiftKey } = event
	const target = /** @type {Element} */ (event.target)
	const key = event.key.toLowerCase()
	const command = ctrlKey || metaKey
	const { session, view } = open.get(current) ?? {}
	if (command && key === 'k') showSidebar()
	else if (command && shiftKey && key === 'o') go(null)
	else if (command && key === '.') view?.showWaiting()
	else if (ctrlKey && key === '`') view && showFrames()
	else if (key === 'escape' && shell.el.classList.contains('menu-open')) showSidebar(false)
	else if (key === 'escape' && session?.running && !repeat && target.tagName !== 'INPUT') session.cancel()
	else {
		if (event.key.length === 1 && key !== ' ' && !command && !altKey && !event.isComposing && !takesKeys(target))
			composerOnScreen()?.focus()
		return
	}
	event.preventDefault()
})

document.addEventListener('paste', event => {
	if (shell && !event.defaultPrevented && !takesKeys(event.target) && !document.querySelector('dialog[open]'))
		composerOnScreen()?.paste(event)
})

const takesKeys = target =>
	target.closest?.('input, textarea, select, button, summary, a, dialog, [contenteditable], [role="menu"]') != null

function composerOnScreen() {
	const { composer } = open.get(current)?.view ?? shell.start
	return composer.el.hidden ? null : composer
}

function wake() {
	if (!shell || document.visibilityState !== 'visible') return
	for (const { session } of open.values()) session.wire.wake()
	refresh()
}
document.addEventListener('visibilitychange', wake)
for (const name of ['online', 'offline', 'pageshow']) window.addEventListener(name, wake)
window.addEventListener('popstate', () => (fragment().has('token') ? begin() : route()))
window.addEventListener('beforeprint', () => open.get(current)?.view.conversation.whole())
for (const name of ['dragover', 'drop']) window.addEventListener(name, event => event.preventDefault())

if (tabs) tabs.onmessage = ({ data }) => hand(data)
begin()
