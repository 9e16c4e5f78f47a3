// The entries of the menus and of the palette
import { app, currentEntry } from './context.js'
import { load, popups } from './parts.js'
import { storage } from './storage.js'
import { say } from './views/dom.js'
import { choice, entry } from './views/menu.js'
import { applyTheme } from './views/theme.js'

// `keys` is a shortcut
/** @type {(label: string, icon: string, onselect: () => any, keys?: string) => Props} */
const entryOf = (label, icon, onselect, keys) => entry(label, icon, onselect, { keys })

const sideEntries = () => [
	entryOf('Changes and files', 'file', () => app.showSide('changes'), 'Ctrl Shift E'),
	entryOf('Raw frames', 'frames', () => app.showSide('frames'), 'Ctrl `')
]
const pageEntries = () => [
	entryOf(say('agents'), 'spark', () => app.show('agents')),
	entryOf('Administration', 'key', () => app.show('admin')),
	entryOf(say('keyboard'), 'keyboard', showHelp, '?')
]

export const menuOf = session => [
	{ heading: `Works in ${session.state?.cwd ?? 'a folder of its own'}` },
	...app.actions.entries({ id: session.id, title: session.title }),
	...sideEntries()
]

export const settingsMenu = () => [...pageEntries(), ...preferenceEntries()]

function preferenceEntries() {
	const { theme = 'system' } = storage.preferences()
	const themes = { system: say('theme_of'), light: 'Light theme', dark: 'Dark theme' }
	return [
		entry(say('notifications'), 'bell', showNotices),
		{ heading: 'Appearance' },
		...Object.entries(themes).map(([name, label]) =>
			choice(label, theme === name, () => {
				storage.savePreferences({ theme: name })
				applyTheme(name)
			})
		),
		{ heading: 'You' },
		entry('Sign out', 'leave', () => app.signOut())
	]
}

function paletteEntries() {
	const { session, view } = currentEntry()
	return [
		entryOf('New session', 'plus', () => app.go(null), 'Ctrl Shift O'),
		entryOf(say('next'), 'shield', app.showWaiting, 'Ctrl .'),
		entryOf(say('board'), 'board', () => app.show('board')),
		...pageEntries(),
		...(app.agents ?? [])
			.filter(one => one.installed)
			.map(({ name }) =>
				entryOf(`New session with ${name}`, 'plus', () => {
					app.chooseAgent(name)
					app.go(null)
				})
			),
		...(session
			? [
					...app.actions.entries(session),
					...app.actions
						.policies(app.current)
						.map(one => ({ ...one, label: `Permissions: ${one.label}`, icon: 'shield' })),
					...view.settings.entries().map(one => ({ ...one, icon: 'gear' })),
					...sideEntries()
				]
			: []),
		...preferenceEntries().filter(one => !one.heading)
	]
}

export async function openPalette(typed = '') {
	// While the palette is loaded no key may stop a turn or send a draft
	const type = event => {
		if (event.ctrlKey || event.metaKey) return
		if (event.key.length < 2) typed += event.key
		event.preventDefault()
		event.stopPropagation()
	}
	addEventListener('keydown', type, true)
	try {
		const { openPalette: opened } = await load(() => import('./views/palette.js'))
		await opened(app, paletteEntries(), () => typed)
	} finally {
		removeEventListener('keydown', type, true)
	}
}

export const showHelp = async () => (await popups()).showHelp()
const showNotices = async () => (await popups()).showNotices(app)
