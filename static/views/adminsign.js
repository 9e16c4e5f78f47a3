// Calls of the operator, with the admin token. It stays in memory: an app's sign-in never has its rights.
import { say, setText, template } from './dom.js'

/** @param {Props} app */
export async function adminCall(app, method, path, body = null) {
	const { addressOf } = app
	const response = await fetch(addressOf(path), {
		method,
		headers: { Authorization: `Bearer ${app.adminToken}`, 'Content-Type': 'application/json' },
		body: body && JSON.stringify(body),
		cache: 'no-store'
	}).catch(() => null)
	const answer = await response?.json().catch(() => null)
	if (response?.ok) return answer
	if (response?.status === 401) app.adminToken = null
	throw Object.assign(new Error(answer?.error ?? say('the_server')), {
		status: response?.status,
		code: answer?.code
	})
}

/** A form that asks for the admin token, and calls `done` when the server has accepted it. */
export function adminForm(app, done) {
	const { el, input, note, button } = template('admin-form')
	el.onsubmit = async event => {
		event.preventDefault()
		button.disabled = true
		app.adminToken = input.value.trim()
		try {
			await adminCall(app, 'GET', '/admin/tokens')
			input.value = ''
			setText(note, '')
			done()
		} catch (error) {
			app.adminToken = null
			setText(note, error.status === 401 || error.status === 403 ? 'This is not the admin token.' : error.message)
			input.select()
		}
		button.disabled = false
	}
	return { el, focus: () => input.focus() }
}
