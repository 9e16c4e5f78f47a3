// The service worker: notifications while no page is open, with the options of a permission request.
// It keeps the sign-in in IndexedDB, from the moment that a user turns push on until it is turned off.

const scope = /** @type {any} */ (self)
const ICON = 'icons/icon-192.png'
const BADGE = 'icons/badge-96.png'
const MAX_ACTIONS = 2

scope.addEventListener('install', () => scope.skipWaiting())
scope.addEventListener('activate', event => event.waitUntil(scope.clients.claim()))

function store(mode, work) {
	return new Promise((resolve, reject) => {
		const opening = indexedDB.open('clawdforge', 1)
		opening.onupgradeneeded = () => opening.result.createObjectStore('kept')
		opening.onerror = () => reject(opening.error)
		opening.onsuccess = () => {
			const asked = work(opening.result.transaction('kept', mode).objectStore('kept'))
			asked.onsuccess = () => resolve(asked.result)
			asked.onerror = () => reject(asked.error)
		}
	})
}

const settings = async () => (await store('readonly', kept => kept.get('settings')).catch(() => null)) ?? {}

scope.addEventListener('message', event => {
	const { settings: changed } = event.data ?? {}
	if (changed !== undefined)
		event.waitUntil(
			store('readwrite', kept => (changed ? kept.put(changed, 'settings') : kept.delete('settings'))).then(() =>
				event.ports[0]?.postMessage('stored')
			)
		)
})

// The hours in which nothing makes a sound
/** @param {Props} [hours] */
function isQuiet({ from, to } = {}, now = new Date()) {
	if (!from || !to || from === to) return false
	const minutes = text => Number(text.slice(0, 2)) * 60 + Number(text.slice(3))
	const [start, end, at] = [minutes(from), minutes(to), now.getHours() * 60 + now.getMinutes()]
	return start < end ? at >= start && at < end : at >= start || at < end
}

function actionsOf(options = []) {
	const first = kinds => options.find(({ kind }) => kinds.includes(kind))
	const chosen = [first(['allow_once', 'allow_always']), first(['reject_once', 'reject_always'])].filter(Boolean)
	return chosen.slice(0, MAX_ACTIONS).map(({ optionId, name }) => ({ action: `option:${optionId}`, title: name }))
}

scope.addEventListener('push', event => event.waitUntil(show(event.data?.json() ?? {})))

async function show(message) {
	const { type, title, body, session_id: session, options, request_id: request } = message
	const pages = await scope.clients.matchAll({ type: 'window', includeUncontrolled: true })
	if (pages.some(({ visibilityState, focused }) => visibilityState === 'visible' && focused)) return
	const { quiet } = await settings()
	const silent = isQuiet(quiet)
	await scope.registration.showNotification(title || 'clawdforge', {
		body,
		icon: ICON,
		badge: BADGE,
		tag: `${session ?? 'app'}:${request ?? type}`,
		silent,
		requireInteraction: !silent && Boolean(request),
		timestamp: Date.parse(message.timestamp) || Date.now(),
		data: message,
		actions: type === 'permission_requested' ? actionsOf(options) : []
	})
}

scope.addEventListener('notificationclick', event => {
	const { notification, action } = event
	notification.close()
	const option = action.startsWith('option:') ? action.slice(7) : null
	event.waitUntil(option === null ? open(notification.data) : answer(notification.data, option))
})

async function answer(message, option) {
	const { session_id: session, request_id: request, title } = message
	const { token } = await settings()
	const path = `sessions/${session}/permissions/${encodeURIComponent(request)}`
	const response = await fetch(new URL(path, scope.registration.scope), {
		method: 'POST',
		headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' },
		body: JSON.stringify({ option_id: option })
	}).catch(() => null)
	if (response?.ok) return
	await scope.registration.showNotification(title, {
		body:
			response?.status === 404
				? 'The request was answered already.'
				: 'Your answer did not arrive. Tap to answer in the page.',
		icon: ICON,
		badge: BADGE,
		tag: `${session}:${request}`,
		data: message
	})
}

/** @param {Props} [message] */
async function open({ session_id: session } = {}) {
	const pages = await scope.clients.matchAll({ type: 'window', includeUncontrolled: true })
	const page = pages.find(({ visibilityState }) => visibilityState === 'visible') ?? pages[0]
	if (!page) return scope.clients.openWindow(new URL(session ? `#session=${session}` : '', scope.registration.scope))
	page.postMessage({ go: session ?? null })
	return page.focus()
}
