import { h, icon, refill, uid } from './dom.js'

/** @type {(label: string, icon: string, onselect: () => any, more?: Props) => Props} an entry of a menu */
export const entry = (label, icon, onselect, more) => ({ label, icon, onselect, ...more })

// One of several entries, of which at most one is chosen
/** @type {(label: string, checked: boolean, onselect: () => any, detail?: string) => Props} */
export const choice = (label, checked, onselect, detail) => ({ label, checked, onselect, detail })

export function menuButton(button, build) {
	const id = uid()
	const menu = h('div.menu', { id, role: 'menu', popover: '', onbeforetoggle, onkeydown })
	button.ariaHasPopup = 'menu'
	button.setAttribute('popovertarget', id)
	function onbeforetoggle({ newState }) {
		if (newState !== 'open') return
		refill(menu, ...build().map(entryView))
		menu.ariaLabel = button.ariaLabel ?? button.textContent
		// The chosen one of a list of choices, or else the first
		const first = menu.querySelector('button:enabled')
		const start = first?.matches('[aria-checked]') && menu.querySelector('[aria-checked="true"]')
		;(start || first)?.setAttribute('autofocus', '')
	}
	function onkeydown(event) {
		const items = [...menu.querySelectorAll('button:enabled')]
		const at = items.indexOf(document.activeElement)
		const to = { ArrowDown: (at + 1) % items.length, ArrowUp: at - 1, Home: 0, End: -1 }[event.key]
		if (event.key === 'Tab') menu.hidePopover()
		if (to === undefined) return
		event.preventDefault()
		items.at(to).focus()
	}
	function entryView({ heading, label, detail, keys, icon: name, checked, danger, disabled, onselect }) {
		if (heading) return h('p.menu-heading', { text: heading, role: 'presentation' })
		const onclick = () => {
			menu.hidePopover()
			onselect()
		}
		const role = checked === undefined ? 'menuitem' : 'menuitemradio'
		const words = h('span.grow', {}, label, detail && h('small', { text: detail }))
		return h(
			`button.menu-item${danger ? '.bad' : ''}`,
			{ role, 'aria-checked': checked !== undefined && String(checked), tabIndex: -1, disabled, onclick },
			name && icon(name),
			words,
			keys && h('kbd', { text: keys }),
			checked && icon('check')
		)
	}
	return h('span.menu-box', {}, button, menu)
}
