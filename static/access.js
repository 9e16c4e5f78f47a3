// Signs in and out: with a token, with a link to read, or with the sign-in of another tab
import { Api } from './api.js'
import { attendSoon, heard } from './attend.js'
import { app, fragment } from './context.js'
import { SessionList } from './list.js'
import { route } from './navigation.js'
import { attention } from './notify.js'
import { conversations, prepare } from './parts.js'
import { buildShell } from './shell.js'
import { storage } from './storage.js'
import { guard, refill, say } from './views/dom.js'
import { signInView } from './views/signin.js'
import { Wire } from './wire.js'

const root = document.getElementById('app')
const tabs = guard(() => new BroadcastChannel('clawdforge')) // may be forbidden, like storage
let entering = 0

export async function begin() {
	const given = fragment()
	const share = given.get('share')
	// An earlier page would still take prompts
	leave()
	refill(root)
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
	if (wanted && app.shell && (app.open.has(wanted) || app.list.states.has(wanted)))
		tabs.postMessage({ session: wanted, token: app.api.token })
	if (!token || app.shell || session !== fragment().get('session')) return
	storage.saveToken(token)
	resume(token)
}
if (tabs) tabs.onmessage = ({ data }) => hand(data)

const resume = (token, shared) => enter(token, shared).catch(error => signIn(error.message, token))

function signIn(message, token) {
	leave()
	const view = signInView(message, token, storage.kept(token), async (given, keep) => {
		await enter(given)
		storage.saveToken(given, keep)
	})
	refill(root, view.el)
	view.focus()
}

export function signOut(message) {
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
	entering += 1
	for (const { session } of app.open.values()) session.stop()
	app.open.clear()
	app.list?.stop()
	Object.assign(app, { shell: null, api: null, list: null, current: null, view: null, adminToken: null })
	Object.assign(app, { panels: {}, beside: [] })
	attention.show('idle')
}

async function enter(token, shared) {
	const refused = () => app.api === api && signOut(say('this_sign'))
	const api = new Api(token, refused, shared)
	const url = app.addressOf('/ws').replace('http', 'ws')
	const mine = (entering += 1)
	let list = null
	const on = (states, live) => app.list === list && heard(states, live)
	const needsViews = (shared || fragment().get('session')) && conversations().catch(() => {})
	list = new SessionList({ api, Wire, url, refused, on })
	try {
		await list.load()
	} catch (error) {
		if (mine === entering) throw error
	}
	await needsViews
	// A page that was built meanwhile may hold typed text
	if (mine !== entering) return
	leave()
	Object.assign(app, { api, list })
	refill(root, buildShell(shared))
	route()
	list.start()
	loadAgents()
	prepare()
}

export async function loadAgents() {
	app.agents = await app.api.agents().catch(() => app.agents)
	app.shell?.start.setAgents(app.agents ?? [])
	attendSoon()
	return app.agents
}
