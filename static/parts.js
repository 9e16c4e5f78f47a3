// Parts of the page that are loaded when they are first needed
import { toast } from './views/dialogs.js'
import { say, styles } from './views/dom.js'

// Each is shown in place of a session
export const PANELS = { board: 'BoardPanel', agents: 'AgentsPanel', admin: 'AdminPanel', compare: 'ComparePanel' }
export const panels = () => load(() => import('./views/panels.js'))

// Views at the right, of which at most one is shown
export const SIDES = { frames: 'FramesView', changes: 'ChangesView' }
export const sides = () => load(() => import('./views/sides.js'))

export async function load(part) {
	try {
		return await part()
	} catch (error) {
		toast(say('this_part'))
		throw error
	}
}

export const popups = () => load(() => import('./views/popups.js'))

export let SessionView = null

// The views of conversations: a first visit shows its start page without them
export async function conversations() {
	const module = await load(() => import('./views/conversations.js'))
	SessionView = module.SessionView
	return module
}

// Loads them at the first movement or key, before they are needed
export function prepare() {
	const once = new AbortController()
	const begin = () => {
		once.abort()
		conversations().catch(() => {})
		import('./views/palette.js').catch(() => {})
		styles('panels')
	}
	for (const name of ['pointermove', 'pointerdown', 'keydown'])
		document.addEventListener(name, begin, { passive: true, signal: once.signal })
}
