import { spell } from '../marks.js'
import { h, refill, setText, template } from './dom.js'

/** @returns {Promise<string>} what a dialog returns when it is closed; a click beside it may close it, too */
export function showDialog(el, light = true) {
	if (light) el.addEventListener('click', ({ target }) => target === el && el.close(''))
	document.body.append(el)
	el.showModal()
	return new Promise(resolve => {
		el.onclose = () => {
			el.remove()
			resolve(el.returnValue)
		}
	})
}

/** @param {Props} options */
export async function ask({ title, text, input, action, danger }) {
	const { el, heading, words, field, cancel, yes } = template('dialog')
	el.ariaLabel = field.ariaLabel = spell(title)
	setText(heading, title)
	setText(words, text)
	words.hidden = !text
	field.value = input ?? ''
	field.hidden = input === undefined
	cancel.onclick = () => el.close('')
	setText(yes, action)
	yes.className = danger ? 'danger' : 'primary'
	yes.autofocus = field.hidden
	const closed = showDialog(el, false)
	if (!field.hidden) field.select()
	return (await closed) === 'yes' ? field.hidden || field.value.trim() : null
}

// A dialog that only tells something
export function popUp(el, close) {
	close.onclick = () => el.close()
	showDialog(el)
}

export function toast(text) {
	const one = h('p', { text, onclick: () => one.remove() })
	refill(document.getElementById('toasts'), one)
	setTimeout(() => one.remove(), 6000)
}
