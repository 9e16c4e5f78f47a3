// Calls of the operator, with the admin token. It stays in memory: an app's sign-in never has its rights.
import { h, setText } from './dom.js'

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
	throw Object.assign(new Error(answer?.error ?? 'The server cannot be reached.'), {
		status: response?.status,
		code: answer?.code
	})
}

/** A form that asks for the admin token, and calls `done` when the server has accepted it. */
export function adminForm(app, done) {
	const input = h('input', {
		type: 'password',
		id: 'admin-token',
		autocomplete: 'off',
		required: true,
		spellcheck: 'false'
	})
	const note = h('p.form-note', { role: 'alert' })
	const button = h('button.primary', {}, 'Continue')
	button.type = 'submit'
	const el = h(
		'form.admin-form',
		{
			onsubmit: async event => {
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
		},
		h('label', { for: 'admin-token', text: 'Admin token' }),
		input,
		note,
		h('p.hint', {
			text: 'CLAWDFORGE_ADMIN_TOKEN, or the one that the first start printed. This page forgets it when you leave.'
		}),
		button
	)
	return { el, focus: () => input.focus() }
}
