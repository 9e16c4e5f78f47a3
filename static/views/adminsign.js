// Asks for the admin token, which stays in memory: an app's sign-in never has its rights
import { say, setText, template } from './dom.js'

/** A form that asks for the admin token, and calls `done` when the server has accepted it. */
export function adminForm(app, done) {
	const { el, input, note, button } = template('admin-form')
	el.onsubmit = async event => {
		event.preventDefault()
		button.disabled = true
		app.adminToken = input.value.trim()
		try {
			await app.callAdmin('GET', '/admin/tokens')
			input.value = ''
			setText(note, '')
			done()
		} catch (error) {
			app.adminToken = null
			setText(note, error.status === 401 || error.status === 403 ? say('not_admin') : error.message)
			input.select()
		}
		button.disabled = false
	}
	return { el, focus: () => input.focus() }
}
