// The places of the page: the start, sessions, panels and sides; the address names them
import { attend, markRead } from './attend.js'
import { app, currentEntry, fragment } from './context.js'
import { conversations, sides as loadSides, PANELS, panels, SessionView, SIDES } from './parts.js'
import { openSession, retire } from './sessions.js'
import { storage } from './storage.js'
import { toast } from './views/dialogs.js'
import { say, styles } from './views/dom.js'

function address({ session, beside = [], view, group }) {
	const given = new URLSearchParams()
	if (session) given.set('session', session)
	if (session && beside.length) given.set('beside', beside.join(','))
	if (view) given.set('view', view)
	if (group) given.set('group', group)
	return given.size ? `#${given}`.replaceAll('%2C', ',') : location.pathname
}

function visit(place, same) {
	// This entry of the history may hold the sign-in.
	if (!same) history[storage.inHistory ? 'replaceState' : 'pushState'](history.state, '', address(place))
	return route()
}

export function go(id, beside = []) {
	return visit({ session: id, beside }, id === app.current && !app.view && String(beside) === String(app.beside))
}

export function show(view, group = null) {
	visit({ view, group }, view === app.view && group === app.group)
}

export function goBeside(id) {
	go(
		app.current ?? id,
		[...new Set([...app.beside, id])].filter(one => one !== app.current)
	)
}

export function closePane(id) {
	const left = [app.current, ...app.beside].filter(one => one !== id)
	go(left[0] ?? null, left.slice(1))
}

export async function route() {
	const { shell } = app
	if (!shell) return
	const given = fragment()
	const view = Object.hasOwn(PANELS, given.get('view') ?? '') ? given.get('view') : null
	const id = (!view && given.get('session')) || null
	const beside = id && app.wide() ? (given.get('beside') ?? '').split(',').filter(one => one && one !== id) : []
	if (app.current && app.current !== id) markRead(currentEntry().session)
	Object.assign(app, { current: id, beside, view, group: given.get('group') })
	showSidebar(false)
	const missing = view ? !app.panels[view] && openPanel(view) : id && !SessionView && conversations()
	if (missing) {
		// The view before it would take a prompt for another place
		for (const child of shell.main.children) child.hidden = true
		await missing
	}
	if (app.view === view && app.current === id && app.shell === shell) arrive()
}

// Shows the place where the page is now
function arrive() {
	const { current, beside, view, shell } = app
	const entries = current ? [current, ...beside].map(one => openSession(one)) : []
	const els = entries.length ? entries.map(one => one.view.el) : [view ? app.panels[view].el : shell.start.el]
	for (const el of els) if (!el.isConnected) shell.main.append(el)
	for (const child of shell.main.children) child.hidden = !els.includes(child)
	const split = els.length > 1
	shell.main.classList.toggle('split', split)
	for (const [index, el] of els.entries()) el.style.order = split ? String(index) : ''
	for (const entry of entries.toReversed()) retire(entry)
	for (const { view: one } of entries) {
		one.setPane(split)
		one.scroll.keep()
	}
	for (const side of Object.values(shell.sides)) if (!side.el.hidden) side.show(entries[0]?.session)
	app.panels[view]?.update?.()
	// A phone's keyboard would cover the conversation.
	if (!entries.length || matchMedia('(hover: hover)').matches) focusMain()
	attend()
}

async function openPanel(view) {
	const part = view === 'compare' ? conversations : panels
	const [module] = await Promise.all([part(), styles('panels')])
	app.panels[view] ??= new module[PANELS[view]](app)
}

export function focusMain() {
	;(currentEntry().view ?? app.panels[app.view] ?? app.shell.start).focus()
}

export function showSidebar(on = true) {
	const { sidebar, el, main } = app.shell
	const inside = sidebar.el.contains(document.activeElement)
	el.classList.toggle('menu-open', on)
	main.inert = on && app.isNarrow()
	if (on) sidebar.focus()
	else if (inside && app.isNarrow()) main.querySelector(':scope > :not([hidden]) .bar button')?.focus()
}

export async function showSide(name, on = app.shell.sides[name]?.el.hidden ?? true) {
	const { sides, el } = app.shell
	if (on && !sides[name]) {
		const [module] = await Promise.all([loadSides(), styles('panels')])
		const close = () => showSide(name, false)
		sides[name] ??= new module[SIDES[name]](app, close)
		sides[name].el.onkeydown = event => {
			if (event.key !== 'Escape' || event.defaultPrevented) return
			event.preventDefault()
			close()
		}
		el.append(sides[name].el)
	}
	for (const [one, view] of Object.entries(sides))
		view.show((one === name ? on : on ? false : !view.el.hidden) ? currentEntry().session : null)
	if (!on) focusMain()
	else sides[name].focus?.()
}

// The next request that waits for a person: in this session, then in the next one
export async function showWaiting() {
	const { view } = currentEntry()
	if (view?.showWaiting()) return undefined
	const waiting = app.rows.filter(({ state }) => state === 'waiting').sort((a, b) => a.at - b.at)
	const at = waiting.findIndex(({ id }) => id === app.current)
	const next = waiting[(at + 1) % waiting.length]
	if (!next) return toast(say('nothing_2'))
	if (next.id === app.current) return view.showWaiting(true)
	await go(next.id)
	app.open.get(next.id)?.view.visitWaiting()
}
