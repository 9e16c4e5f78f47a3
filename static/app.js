import { sessionActions } from './actions.js'
import { Api, addressOf } from './api.js'
import { isArchived, isPinned, nameOf, projectOf, SessionList } from './list.js'
import { records, titleOf } from './normalise.js'
import { Session } from './session.js'
import { storage } from './storage.js'
import { promptParts, textOf } from './transcript.js'
import { Attention } from './views/attention.js'
import { titleOf as titleOfCall, titleOfRequest } from './views/calltitle.js'
import { toast } from './views/dialogs.js'
import { guard, say, styles, template } from './views/dom.js'
import { Sidebar } from './views/sidebar.js'
import { signInView } from './views/signin.js'
import { StartView } from './views/start.js'
import { applyTheme } from './views/theme.js'
import { Wire } from './wire.js'

const KEPT_OPEN = 8
const ATTEND_EVERY = 250 // ms
const READ_AFTER = 600

const root = document.getElementById('app')
const tabs = guard(() => new BroadcastChannel('clawdforge')) // may be forbidden, like storage
const attention = new Attention()
const narrow = matchMedia('(max-width: 760px)')
const wide = matchMedia('(min-width: 1080px)')
// Panels that load when they are first opened; each is shown in place of a session
const PANELS = {
	board: () => import('./views/board.js'),
	agents: () => import('./views/agents.js'),
	admin: () => import('./views/admin.js')
}

let shell = null
let SessionView = null
/** @type {Props} */
const app = {
	api: null,
	list: null,
	open: new Map(), // session id -> {session, view, seen}
	panels: {},
	current: null,
	beside: [],
	view: null,
	adminToken: null, // in memory only
	rows: [],
	go,
	goBeside,
	forget,
	load,
	show,
	create,
	made,
	storage,
	isNarrow: () => narrow.matches,
	wide: () => wide.matches,
	showWaiting,
	signOut,
	toggleNotify,
	addressOf,
	chooseAgent: name => shell.start.chooseAgent(name)
}
const actions = (app.actions = sessionActions(app))
const { open } = app

const fragment = () => new URLSearchParams(location.hash.slice(1))
const draftOf = id => ({
	read: part => storage.draft(id, part),
	save: (value, part) => storage.saveDraft(id, value, part)
})
const draftOfNew = token => draftOf(`new-${markOf(token)}`)

// A checksum that distinguishes tokens without revealing them
function markOf(token) {
	let mark = 0
	for (const char of token) mark = (Math.imul(mark, 31) + char.charCodeAt(0)) | 0
	return (mark >>> 0).toString(36)
}

async function begin() {
	const given = fragment()
	const share = given.get('share')
	// An earlier page would still take prompts
	leave()
	root.replaceChildren()
	if (share) return resume(share, given.get('session'))
	if (given.has('token')) {
		storage.saveToken(given.get('token'))
		given.delete('token')
		history.replaceState(history.state, '', given.size ? `#${given}` : location.pathname)
	}
	const token = storage.token()
	if (token) await resume(token)
	else signIn()
	if (!app.api) tabs?.postMessage({ wanted: fragment().get('session') })
}

// A tab that lists the session passes its sign-in to a new tab
function hand({ wanted, session, token }) {
	if (wanted && shell && (open.has(wanted) || app.list.states.has(wanted)))
		tabs.postMessage({ session: wanted, token: app.api.token })
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
	const { push } = storage.preferences()
	const { api } = app
	// The service worker must not keep the sign-in
	if (push) {
		storage.savePreferences({ push: null })
		import('./push.js').then(({ unsubscribe }) => unsubscribe(api, push)).catch(() => {})
	}
	storage.saveToken(null, false)
	signIn(message)
}

function leave() {
	for (const { session } of open.values()) session.stop()
	open.clear()
	app.list?.stop()
	shell = app.api = app.list = app.current = app.view = app.adminToken = null
	Object.assign(app, { panels: {}, beside: [] })
	attention.show('idle')
}

async function enter(token, shared) {
	const refused = () => app.api === mine && signOut(say('this_sign'))
	const mine = new Api(token, refused, shared)
	const url = addressOf('/ws').replace('http', 'ws')
	let list = null
	const on = (states, live) => app.list === list && heard(states, live)
	const needsViews = (shared || fragment().get('session')) && conversations().catch(() => {})
	list = new SessionList({ api: mine, Wire, url, refused, on })
	await list.load()
	await needsViews
	leave()
	app.api = mine
	app.list = list
	buildShell()
	if (shared) shell.el.classList.add('shared')
	route()
	list.start()
	loadAgents()
	prepare()
}

async function loadAgents() {
	app.agents = await app.api.agents().catch(() => app.agents)
	shell?.start.setAgents(app.agents ?? [])
	attendSoon()
	return app.agents
}
app.loadAgents = loadAgents

function buildShell() {
	const upload = (...file) => app.api.upload(...file)
	const sidebar = new Sidebar({
		open: go,
		view: view => show(view),
		hide: () => showSidebar(false),
		entries: actions.entries,
		menu: settingsMenu,
		palette: openPalette,
		more: () => app.list.loadMore().catch(error => toast(error.message)),
		search: text => app.api.search(text),
		choice: storage.preferences().list ?? {},
		choose: list => {
			storage.savePreferences({ list })
			attend()
		},
		skip: focusMain
	})
	const start = new StartView({
		on: {
			create,
			compare,
			save: choice => storage.savePreferences({ start: choice }),
			menu: showSidebar,
			agents: () => show('agents'),
			several: async (...given) => (await load(() => import('./views/several.js'))).chooseAgents(...given),
			folder: async choice => (await load(() => import('./views/folders.js'))).chooseFolder(app, choice)
		},
		upload,
		choice: storage.preferences().start,
		draft: draftOfNew(app.api.token)
	})
	const { el, veil, main } = template('shell')
	veil.onclick = () => showSidebar(false)
	main.append(start.el)
	el.prepend(sidebar.el)
	shell = { el, sidebar, start, main, upload, sides: {} }
	root.replaceChildren(el)
}

// A part of the page that is loaded when it is first needed
async function load(part) {
	try {
		return await part()
	} catch (error) {
		toast(say('this_part'))
		throw error
	}
}

// The views of a conversation: a first visit shows its start page without them
async function conversations() {
	SessionView ??= (await load(() => import('./views/sessionview.js'))).SessionView
}

// Loads them at the first movement or key, before they are needed
function prepare() {
	const once = new AbortController()
	const begin = () => {
		once.abort()
		conversations().catch(() => {})
		import('./views/palette.js').catch(() => {})
		styles('panels')
	}
	for (const name of ['pointermove', 'pointerdown', 'keydown'])
		document.addEventListener(name, begin, { passive: true, signal: once.signal })
}

function focusMain() {
	;(open.get(app.current)?.view ?? app.panels[app.view] ?? shell.start).focus()
}

function showSidebar(on = true) {
	const inside = shell.sidebar.el.contains(document.activeElement)
	shell.el.classList.toggle('menu-open', on)
	shell.main.inert = on && narrow.matches
	if (on) shell.sidebar.focus()
	else if (inside && narrow.matches) shell.main.querySelector(':scope > :not([hidden]) .bar button')?.focus()
}
app.showSidebar = showSidebar

// The views at the right, of which at most one is shown
const SIDES = {
	frames: async close => new (await import('./views/frames.js')).FramesView(close),
	changes: async close => new (await import('./views/changes.js')).ChangesView(app, close)
}

async function showSide(name, on = shell.sides[name]?.el.hidden ?? true) {
	const { sides } = shell
	if (on && !sides[name]) {
		const [view] = await Promise.all([load(() => SIDES[name](() => showSide(name, false))), styles('panels')])
		if (!sides[name]) shell.el.append((sides[name] = view).el)
	}
	for (const [one, view] of Object.entries(sides))
		view.show((one === name ? on : on ? false : !view.el.hidden) ? open.get(app.current)?.session : null)
	if (!on) focusMain()
	else sides[name].focus?.()
}

function address({ session, beside = [], view }) {
	const given = new URLSearchParams()
	if (session) given.set('session', session)
	if (session && beside.length) given.set('beside', beside.join(','))
	if (view) given.set('view', view)
	return given.size ? `#${given}`.replaceAll('%2C', ',') : location.pathname
}

function visit(place, same) {
	// This entry of the history may hold the sign-in.
	if (!same) history[storage.inHistory ? 'replaceState' : 'pushState'](history.state, '', address(place))
	return route()
}

function go(id, beside = []) {
	return visit({ session: id, beside }, id === app.current && !app.view && String(beside) === String(app.beside))
}

function show(view) {
	visit({ view }, view === app.view)
}

function goBeside(id) {
	go(
		app.current ?? id,
		[...new Set([...app.beside, id])].filter(one => one !== app.current)
	)
}

function closePane(id) {
	const left = [app.current, ...app.beside].filter(one => one !== id)
	go(left[0] ?? null, left.slice(1))
}

async function route() {
	if (!shell) return
	const given = fragment()
	const view = Object.hasOwn(PANELS, given.get('view') ?? '') ? given.get('view') : null
	const id = (!view && given.get('session')) || null
	const beside = id && wide.matches ? (given.get('beside') ?? '').split(',').filter(one => one && one !== id) : []
	leaveCurrent(id)
	Object.assign(app, { current: id, beside, view })
	showSidebar(false)
	const missing = view ? !app.panels[view] && openPanel(view) : id && !SessionView && conversations()
	if (missing) {
		// What was shown would take a prompt for another place
		for (const child of shell.main.children) child.hidden = true
		await missing
	}
	if (app.view !== view || app.current !== id || !shell) return
	const entries = id ? [id, ...beside].map(one => openSession(one)) : []
	const els = entries.length ? entries.map(one => one.view.el) : [view ? app.panels[view].el : shell.start.el]
	for (const el of els) if (!el.isConnected) shell.main.append(el)
	for (const child of shell.main.children) child.hidden = !els.includes(child)
	shell.main.classList.toggle('split', els.length > 1)
	for (const [index, el] of els.entries()) el.style.order = els.length > 1 ? String(index) : ''
	for (const entry of entries.toReversed()) retire(entry)
	for (const { view: one } of entries) {
		one.setPane(els.length > 1)
		one.scroll.keep()
	}
	for (const side of Object.values(shell.sides)) if (!side.el.hidden) side.show(entries[0]?.session)
	app.panels[view]?.update?.()
	// A phone's keyboard would cover the conversation.
	if (!entries.length || matchMedia('(hover: hover)').matches) focusMain()
	attend()
}

async function openPanel(view) {
	const [module] = await Promise.all([load(PANELS[view]), styles('panels')])
	app.panels[view] ??= new module.Panel(app)
}

// Marks the session that leaves the screen as read
function leaveCurrent(next) {
	if (app.current && app.current !== next) markRead(open.get(app.current)?.session)
}

function retire(entry) {
	open.delete(entry.session.id)
	open.set(entry.session.id, entry)
	const shown = [app.current, ...app.beside]
	for (const [id, { session, view }] of open) {
		if (open.size <= KEPT_OPEN) break
		if (shown.includes(id) || session.running || session.outbox.size || view.composer.attachments.blocked) continue
		drop(id)
	}
}

function drop(id) {
	const entry = open.get(id)
	entry?.session.stop()
	entry?.view.el.remove()
	open.delete(id)
}

// A session that was deleted
function forget(id) {
	drop(id)
	app.list.forget(id)
	storage.forget(id)
	if (onScreen(id)) closePane(id)
}

function openSession(id, state = app.list.states.get(id)) {
	if (open.has(id)) return open.get(id)
	const url = addressOf(`/sessions/${encodeURIComponent(id)}/ws`).replace('http', 'ws')
	const session = new Session(id, state, { api: app.api, storage, Wire, url })
	const view = new SessionView(session, {
		upload: shell.upload,
		draft: draftOf(id),
		on: {
			showSidebar,
			startNew: () => go(null),
			sendAnew: message => createLike(session, message),
			reopen: () => session.reopen().then(reopened => app.list.hear(reopened)),
			entries: () => menuOf(session),
			turnEntries: actions.turnEntries,
			policies: () => actions.policies(id),
			keep: () => actions.keep(id),
			focused: () => focusPane(id),
			closePane: () => closePane(id),
			phone: () => actions.phone(session),
			review: () => {
				focusPane(id)
				showSide('changes')
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

// Keys and the frames belong to the pane that has the focus
function focusPane(id) {
	if (app.current === id || !app.beside.includes(id)) return
	const order = [app.current, ...app.beside]
	Object.assign(app, { current: id, beside: order.filter(one => one !== id) })
	attendSoon()
}

const menuOf = session => [
	{ heading: `Works in ${session.state?.cwd ?? 'a folder of its own'}` },
	...actions.entries({ id: session.id, title: session.title }),
	...sideEntries()
]

// For menus, which show `detail`, and for the palette, which shows `keys`
const sideEntries = () => [
	entryOf('Changes and files', 'file', () => showSide('changes'), 'Ctrl Shift E'),
	entryOf('Raw frames', 'frames', () => showSide('frames'), 'Ctrl `')
]
const pageEntries = () => [
	entryOf(say('agents'), 'spark', () => show('agents')),
	entryOf('Administration', 'key', () => show('admin')),
	entryOf(say('keyboard'), 'keyboard', showHelp, '?')
]
const entryOf = (label, icon, onselect, keys) => ({ label, icon, onselect, keys, detail: keys })

// Shows the new session only if the user is still at `from`
async function create(options, { prompt, files }, from = null) {
	await conversations()
	const state = await made(options)
	openSession(state.session_id, { ...options, ...state }).session.send({ prompt, files })
	if (app.current === from && !app.view) go(state.session_id)
}

// Conversations stay until they are deleted
async function made(options) {
	const all = { retention_secs: null, elicitation: 'ask', ...options }
	const { elicitation, ...fewer } = all
	const state = await app.api
		.create(all)
		.catch(error => (error.code === 'not_supported' ? app.api.create(fewer) : Promise.reject(error)))
	app.list.hear(state)
	return state
}

// The same prompt to several agents, side by side
async function compare(options, agents, { prompt, files }) {
	const group = crypto.getRandomValues(new Uint32Array(1))[0].toString(36)
	const states = []
	await conversations()
	for (const agent of agents) states.push(await made({ ...options, agent, meta: { compare: group } }))
	for (const state of states) openSession(state.session_id, state).session.send({ prompt, files })
	const [first, ...others] = states.map(one => one.session_id)
	go(first, others)
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

// States from the list; of an open session, its own socket has the newer ones
function heard(states, live) {
	for (const state of states) {
		const entry = open.get(state.session_id)
		if (entry && (live || !entry.session.synced)) entry.session.hear(state)
		else if (live && !entry) tellOf(state)
	}
	attendSoon()
}

function rowsOfAll() {
	const rows = new Map()
	for (const state of app.list.states.values()) {
		const { session_id: id, pending_permissions: asks, pending_elicitations: questions } = state
		const waits = records(asks).length + records(questions).length > 0
		rows.set(id, {
			id,
			title: titleOf(state.meta),
			agent: state.agent,
			at: state.last_turn_at ?? state.created_at ?? 0,
			state: waits ? 'waiting' : state.state === 'running' ? 'running' : 'idle',
			unread: state.unread > 0 && state.turn_count > 0,
			pinned: isPinned(state),
			archived: isArchived(state),
			project: projectOf(state)
		})
	}
	for (const [id, { session }] of open) {
		if (!session.synced) continue
		const { agent, title, closed, waiting, running, model } = session
		const row = rows.get(id) ?? { id, at: session.state?.created_at ?? 0 }
		rows.set(id, {
			...row,
			title,
			agent,
			at: Math.max(row.at, (model.turns.at(-1)?.startedAt ?? 0) / 1000),
			state: closed ? 'idle' : waiting ? 'waiting' : running ? 'running' : 'idle',
			unread: !running && (session.readTo === undefined ? row.unread : model.head > session.readTo)
		})
	}
	for (const id of storage.unsent()) {
		const text = storage.draft(id) || promptParts(storage.outbox(id)[0]?.prompt).text
		if (!rows.has(id) && !id.startsWith('new'))
			rows.set(id, { id, title: `Not sent: ${text.trim().slice(0, 60)}`, agent: 'draft', at: 0, state: 'idle' })
	}
	for (const row of rows.values()) if (row.unread && row.state === 'idle' && !onScreen(row.id)) row.state = 'finished'
	return [...rows.values()]
}

const onScreen = id => id === app.current || app.beside.includes(id)

let attendTimer
let readTimer = null

function attendSoon() {
	attendTimer ||= setTimeout(attend, ATTEND_EVERY)
}

function attend() {
	clearTimeout(attendTimer)
	attendTimer = 0
	if (!shell) return
	const entries = [...open.values()].filter(({ session }) => session.synced)
	for (const entry of entries) guard(() => tell(entry))
	app.rows = rowsOfAll()
	shell.sidebar.update(app.rows, { current: app.current, view: app.view, more: Boolean(app.list.more) })
	shell.start.setProjects(projects())
	app.panels[app.view]?.update?.()
	const waiting = app.rows.filter(({ state }) => state === 'waiting')
	const runs = app.rows.some(({ state }) => state === 'running')
	const shown = open.get(app.current)?.session
	const one = waiting.find(({ id }) => id === app.current) ?? waiting[0]
	const words = one ? 'waiting' : shown?.running ? 'running' : 'idle'
	attention.show(words, one ? one.title : shown?.title, one ? 'waiting' : runs ? 'running' : 'idle')
	if (shown && readTimer === null) readTimer = setTimeout(readShown, READ_AFTER)
}

function projects() {
	const found = new Map()
	for (const { project, at } of app.rows) {
		if (!project) continue
		const { count = 0, last = 0 } = found.get(project) ?? {}
		found.set(project, { path: project, name: nameOf(project), count: count + 1, last: Math.max(last, at) })
	}
	return [...found.values()].sort((a, b) => b.last - a.last)
}

function readShown() {
	readTimer = null
	if (document.visibilityState !== 'visible') return
	for (const id of [app.current, ...app.beside]) {
		const { session } = open.get(id) ?? {}
		if (session && !session.running) markRead(session)
	}
}

async function markRead(session) {
	const { id, model, synced } = session ?? {}
	if (!synced || app.api.shared || model.head <= (session.readTo ?? 0)) return
	if (session.readTo === undefined && app.list.states.get(id)?.unread === 0) return void (session.readTo = model.head)
	session.readTo = model.head
	const seq = model.head
	const { unread } = await app.api.read(id, seq).catch(() => ({ unread: undefined }))
	// A newer state has counted more
	if (unread !== undefined && !(app.list?.states.get(id)?.head > seq)) app.list?.hear({ session_id: id, unread })
}

const wantsNotes = () => storage.preferences().notify && !storage.preferences().push

function tell(entry) {
	const { session, seen } = entry
	const { agent, model, running, title } = session
	const turns = model.turns.length
	entry.seen = { running, turns, waiting: new Set(model.waiting.keys()) }
	if (!seen) return
	const notify = (words, body) => wantsNotes() && attention.notify(words, body, () => go(session.id))
	const asked = [...model.waiting.values()].filter(({ requestId }) => !seen.waiting.has(requestId))
	for (const { call, options } of asked.slice(-1)) {
		const what = titleOfCall(call)
		attention.say(`${agent} ${options ? 'asks for your permission' : 'asks you'}: ${what}`, true)
		notify(`${agent} waits for you`, what || title)
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
	notify(`${agent} has finished`, title)
}

const told = new Map()

// The same for a session that is not open
function tellOf(state) {
	const { session_id: id, agent, meta, pending_permissions: asks, state: name } = state
	const before = told.get(id)
	const waits = records(asks).length
	told.set(id, { waits, name })
	if (!before) return
	const notify = (words, body) => wantsNotes() && attention.notify(words, body, () => go(id))
	if (waits > before.waits) {
		const what = titleOfRequest(records(asks).at(-1).request) || titleOf(meta)
		attention.say(`${agent} asks for your permission: ${what}`, true)
		notify(`${agent} waits for you`, what)
	} else if (before.name === 'running' && name === 'idle') notify(`${agent} has finished`, titleOf(meta))
}

// The next request that waits for a person: in this session, then in the next one
async function showWaiting() {
	const view = open.get(app.current)?.view
	if (view?.showWaiting()) return undefined
	const waiting = app.rows.filter(({ state }) => state === 'waiting').sort((a, b) => a.at - b.at)
	const at = waiting.findIndex(({ id }) => id === app.current)
	const next = waiting[(at + 1) % waiting.length]
	if (!next) return toast(say('nothing_2'))
	if (next.id === app.current) return view.showWaiting(true)
	await go(next.id)
	open.get(next.id)?.view.visitWaiting()
}

async function openPalette() {
	let typed = '' // while the palette is loaded
	const type = event => {
		if (event.key.length > 1 || event.ctrlKey || event.metaKey) return
		typed += event.key
		event.preventDefault()
		event.stopPropagation()
	}
	addEventListener('keydown', type, true)
	try {
		const { openPalette: opened } = await load(() => import('./views/palette.js'))
		await opened(app, paletteEntries(), () => typed)
	} finally {
		removeEventListener('keydown', type, true)
	}
}

function paletteEntries() {
	const { session, view } = open.get(app.current) ?? {}
	return [
		{ label: 'New session', keys: 'Ctrl Shift O', icon: 'plus', onselect: () => go(null) },
		{ label: say('next'), keys: 'Ctrl .', icon: 'shield', onselect: showWaiting },
		{ label: say('board'), icon: 'board', onselect: () => show('board') },
		...pageEntries(),
		...(session
			? [
					...actions.entries(session),
					...actions.policies(app.current).map(one => ({ ...one, label: `Permissions: ${one.label}`, icon: 'shield' })),
					...view.settings.entries().map(one => ({ ...one, icon: 'gear' })),
					...sideEntries()
				]
			: []),
		...preferenceEntries().filter(one => !('heading' in one))
	]
}

async function showHelp() {
	const { showHelp: shown } = await load(() => import('./views/help.js'))
	shown()
}

const settingsMenu = () => [...pageEntries(), ...preferenceEntries()]

function preferenceEntries() {
	const { notify, theme = 'system' } = storage.preferences()
	const themes = { system: say('theme_of'), light: 'Light', dark: 'Dark' }
	return [
		{
			label: notify ? 'Do not notify me' : say('notify_me'),
			icon: 'bell',
			onselect: toggleNotify
		},
		{ label: say('notifications'), icon: 'clock', onselect: showNotices },
		{ heading: 'Appearance' },
		...Object.entries(themes).map(([name, label]) => ({
			label,
			checked: theme === name,
			onselect: () => {
				storage.savePreferences({ theme: name })
				applyTheme(name)
			}
		})),
		{ heading: 'You' },
		{ label: 'Sign out', icon: 'leave', onselect: () => signOut() }
	]
}

async function showNotices() {
	const { showNotices: shown } = await load(() => import('./views/notices.js'))
	shown(app)
}

async function toggleNotify() {
	const notify = !storage.preferences().notify && (await globalThis.Notification?.requestPermission()) === 'granted'
	storage.savePreferences({ notify })
	const refused = !notify && globalThis.Notification?.permission === 'denied'
	toast(
		notify
			? 'You will be notified when an agent waits for you or has finished.'
			: refused
				? 'The browser does not allow notifications of this page.'
				: say('notifications_2')
	)
}

document.addEventListener('keydown', event => {
	if (!shell || event.defaultPrevented || document.querySelector('dialog[open], :popover-open')) return
	const { altKey, ctrlKey, metaKey, repeat, shiftKey } = event
	const target = /** @type {Element} */ (event.target)
	const key = event.key.toLowerCase()
	const command = ctrlKey || metaKey
	const { session, view } = open.get(app.current) ?? {}
	if (command && key === 'k') openPalette()
	else if (command && shiftKey && key === 'o') go(null)
	else if (command && shiftKey && key === 'f') showSidebar()
	else if (command && shiftKey && key === 'e') view && showSide('changes')
	else if (command && key === '.') showWaiting()
	else if (ctrlKey && key === '`') view && showSide('frames')
	else if (altKey && !command && (key === 'arrowup' || key === 'arrowdown')) view?.jumpTo(key === 'arrowup' ? -1 : 1)
	else if ((command && key === '/') || (event.key === '?' && !command && !altKey && !takesText(target))) showHelp()
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
const takesText = target => target.closest?.('input, textarea, select, [contenteditable]') != null

function composerOnScreen() {
	const { composer } = open.get(app.current)?.view ?? shell.start
	return composer.el.checkVisibility() ? composer : null
}

function wake() {
	if (!shell || document.visibilityState !== 'visible') return
	for (const { session } of open.values()) session.wire.wake()
	app.list.wake()
	attendSoon()
}
document.addEventListener('visibilitychange', wake)
for (const name of ['online', 'offline', 'pageshow']) window.addEventListener(name, wake)
window.addEventListener('popstate', () => (/\b(token|share)=/.test(location.hash) ? begin() : route()))
window.addEventListener('beforeprint', () => open.get(app.current)?.view.conversation.whole())
for (const name of ['dragover', 'drop']) window.addEventListener(name, event => event.preventDefault())

guard(() => navigator.serviceWorker?.addEventListener('message', ({ data }) => shell && 'go' in data && go(data.go)))
applyTheme(storage.preferences().theme)
if (tabs) tabs.onmessage = ({ data }) => hand(data)
begin()
