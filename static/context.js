// State that the modules of the page share: the sign-in, the open sessions, and the place that is shown
import { Api, addressOf } from './api.js'
import { storage } from './storage.js'

const narrow = matchMedia('(max-width: 760px)')
const wide = matchMedia('(min-width: 1080px)')

/** @type {Props} app.js adds the functions that views call */
export const app = {
	api: null,
	list: null,
	shell: null, // {el, sidebar, start, main, upload, sides}
	open: new Map(), // session id -> {session, view, seen}
	panels: {},
	current: null, // session id
	beside: [],
	view: null,
	adminToken: null, // in memory only
	agents: null,
	rows: [],
	storage,
	addressOf,
	callAdmin: (...call) => new Api(app.adminToken, () => (app.adminToken = null)).call(...call),
	isNarrow: () => narrow.matches,
	wide: () => wide.matches
}

export const fragment = () => new URLSearchParams(location.hash.slice(1))
export const onScreen = id => id === app.current || app.beside.includes(id)

/** @returns {Props} the session that has the focus, and its view */
export const currentEntry = () => app.open.get(app.current) ?? {}

export const draftOf = id => ({
	read: part => storage.draft(id, part),
	save: (value, part) => storage.saveDraft(id, value, part)
})
