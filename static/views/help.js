// ?: what the keys do
import { popUp } from './dialogs.js'
import { styles, template } from './dom.js'

export async function showHelp() {
	await styles('panels')
	const { el, close } = template('help')
	if (/Mac|iPhone|iPad/.test(navigator.platform))
		for (const key of el.querySelectorAll('kbd')) if (key.textContent === 'Ctrl') key.textContent = '⌘'
	popUp(el, close)
}
