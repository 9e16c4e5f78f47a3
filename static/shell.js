// The frame of the page: the list of sessions at the left, and what is shown beside it
import { attend } from './attend.js'
import { app, draftOf } from './context.js'
import { openPalette, settingsMenu } from './menus.js'
import { focusMain } from './navigation.js'
import { popups } from './parts.js'
import { compare, create } from './sessions.js'
import { storage } from './storage.js'
import { toast } from './views/dialogs.js'
import { template } from './views/dom.js'
import { Sidebar } from './views/sidebar.js'
import { StartView } from './views/start.js'

// A checksum that distinguishes tokens without revealing them
function markOf(token) {
	let mark = 0
	for (const char of token) mark = (Math.imul(mark, 31) + char.charCodeAt(0)) | 0
	return (mark >>> 0).toString(36)
}

export function buildShell(shared) {
	const upload = (...file) => app.api.upload(...file)
	const sidebar = new Sidebar({
		open: app.go,
		view: app.show,
		hide: () => app.showSidebar(false),
		entries: app.actions.entries,
		menu: settingsMenu,
		palette: openPalette,
		more: () => app.list.loadMore().catch(error => toast(error.message)),
		choice: storage.preferences().list ?? {},
		choose: list => {
			storage.savePreferences({ list })
			attend()
		},
		skip: focusMain
	})
	const start = new StartView({
		on: {
			create,
			compare,
			save: choice => storage.savePreferences({ start: choice }),
			menu: app.showSidebar,
			agents: () => app.show('agents'),
			several: async (...given) => (await popups()).chooseAgents(...given),
			folder: async choice => (await popups()).chooseFolder(app, choice)
		},
		upload,
		choice: storage.preferences().start,
		draft: draftOf(`new-${markOf(app.api.token)}`)
	})
	const { el, veil, main } = template('shell')
	veil.onclick = () => app.showSidebar(false)
	main.append(start.el)
	el.prepend(sidebar.el)
	el.classList.toggle('shared', Boolean(shared))
	app.shell = { el, sidebar, start, main, upload, sides: {} }
	return el
}
