// Parts of the page that are loaded when they are first needed
import { app } from './context.js'
import { toast } from './views/dialogs.js'
import { say, styles } from './views/dom.js'

// Each is shown in place of a session
export const PANELS = {
	board: () => import('./views/board.js'),
	agents: () => import('./views/agents.js'),
	admin: () => import('./views/admin.js')
}

// Views at the right, of which at most one is shown
export const SIDES = {
	frames: async close => new (await import('./views/frames.js')).FramesView(close),
	changes: async close => new (await import('./views/changes.js')).ChangesView(app, close)
}

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

// The views of a conversation: a first visit shows its start page without them
export async function conversations() {
	SessionView ??= (await load(() => import('./views/sessionview.js'))).SessionView
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
