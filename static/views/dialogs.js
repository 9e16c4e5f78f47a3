import { spell } from '../marks.js'
import { h, setText, template } from './dom.js'

/** @param {Props} options */
export function ask({ title, text, input, action, danger }) {
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
	document.body.append(el)
	el.showModal()
	if (!field.hidden) field.select()
	return new Promise(resolve => {
		el.onclose = () => {
			el.remove()
			resolve(el.returnValue !== 'yes' ? null : field.hidden || field.value.trim())
		}
	})
}

// A dialog that a click beside it closes, too
export function popUp(el, close) {
	close.onclick = () => el.close()
	el.addEventListener('click', event => event.target === el && el.close())
	el.onclose = () => el.remove()
	document.body.append(el)
	el.showModal()
}

export function toast(text) {
	const one = h('p', { text, onclick: () => one.remove() })
	document.getElementById('toasts').replaceChildren(one)
	setTimeout(() => one.remove(), 6000)
}
