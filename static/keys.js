// Keys and pasted text that belong to no field
import { app, currentEntry } from './context.js'
import { openPalette, showHelp } from './menus.js'

const takesKeys = target =>
	target.closest?.('input, textarea, select, button, summary, a, dialog, [contenteditable], [role="menu"]') != null
const takesText = target => target.closest?.('input, textarea, select, [contenteditable]') != null

function composerOnScreen() {
	const { composer } = currentEntry().view ?? app.shell.start
	return composer.el.checkVisibility() ? composer : null
}

document.addEventListener('keydown', event => {
	if (!app.shell || event.defaultPrevented || document.querySelector('dialog[open], :popover-open')) return
	const { altKey, ctrlKey, metaKey, repeat, shiftKey } = event
	const target = /** @type {Element} */ (event.target)
	const key = event.key.toLowerCase()
	const command = ctrlKey || metaKey
	const { session, view } = currentEntry()
	if (command && key === 'k') openPalette()
	else if (command && shiftKey && key === 'o') app.go(null)
	else if (command && shiftKey && key === 'f') app.showSidebar()
	else if (command && shiftKey && key === 'e') view && app.showSide('changes')
	else if (command && key === '.') app.showWaiting()
	else if (ctrlKey && key === '`') view && app.showSide('frames')
	else if (altKey && !command && (key === 'arrowup' || key === 'arrowdown')) view?.jumpTo(key === 'arrowup' ? -1 : 1)
	else if ((command && key === '/') || (event.key === '?' && !command && !altKey && !takesText(target))) showHelp()
	else if (key === 'escape' && app.shell.el.classList.contains('menu-open')) app.showSidebar(false)
	else if (key === 'escape' && session?.running && !repeat && target.tagName !== 'INPUT') session.pause()
	else {
		if (event.key.length === 1 && key !== ' ' && !command && !altKey && !event.isComposing && !takesKeys(target))
			composerOnScreen()?.focus()
		return
	}
	event.preventDefault()
})

document.addEventListener('paste', event => {
	if (app.shell && !event.defaultPrevented && !takesKeys(event.target) && !document.querySelector('dialog[open]'))
		composerOnScreen()?.paste(event)
})
