// Web Push, and the service worker that shows its notifications. No DOM
import { trusted } from './trusted.js'

const SCOPE = () => new URL('.', document.baseURI).pathname

export const canPush = () => isSecureContext && 'serviceWorker' in navigator && 'PushManager' in globalThis

/** The registration of the service worker, or null in a browser without one. */
export async function worker() {
	if (!isSecureContext || !('serviceWorker' in navigator)) return null
	await navigator.serviceWorker.register(trusted.createScriptURL('static/sw.js'), { scope: SCOPE() })
	return navigator.serviceWorker.ready
}

/** Stores what the service worker needs: the sign-in, and the quiet hours. Null forgets it. */
export async function tellWorker(settings) {
	const registration = await worker()
	const { port1, port2 } = new MessageChannel()
	const stored = new Promise(resolve => (port1.onmessage = resolve))
	registration.active.postMessage({ settings }, [port2])
	await stored
}

/** @returns {Promise<string>} the id of the subscription */
export async function subscribe(api, quiet) {
	const registration = await worker()
	const { key } = await api.call('GET', '/push/key')
	const subscription = await registration.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: key })
	const { id } = await api.call('POST', '/push/subscriptions', subscription.toJSON())
	await tellWorker({ token: api.token, quiet })
	return id
}

export async function unsubscribe(api, id) {
	await tellWorker(null)
	const registration = await worker()
	await (await registration.pushManager.getSubscription())?.unsubscribe()
	if (id) await api.call('DELETE', `/push/subscriptions/${id}`).catch(() => {})
}
