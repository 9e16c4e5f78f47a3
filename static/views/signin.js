import { say, setText, template } from './dom.js'

export function signInView(message = '', token = '', kept, signIn) {
	const { el, form, input, keep, note, button } = template('signin')
	input.value = token
	keep.checked = kept
	setText(note, message)
	form.onsubmit = async event => {
		event.preventDefault()
		button.disabled = true
		try {
			await signIn(input.value.trim(), keep.checked)
		} catch (error) {
			setText(note, error.status === 401 ? say('the_server') : error.message)
			input.select()
		}
		button.disabled = false
	}
	return { el, focus: () => input.focus() }
}
