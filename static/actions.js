// The actions on one session, for menus and the palette
import { isArchived, isPinned, projectOf } from './list.js'
import { promptParts } from './transcript.js'
import { ask, toast } from './views/dialogs.js'
import { copyText, say, word } from './views/dom.js'
import { choice, entry } from './views/menu.js'

const named = title => (title ? `“${title}”: ` : '')

// The permission policies, of which one is chosen
export const policyEntries = (chosen, choose) =>
	['ask', 'approve-reads', 'approve-all', 'deny-all'].map(name =>
		choice(word('permission', name), name === chosen, () => choose(name), word('policy', name))
	)

/** @param {Props} app */
export function sessionActions(app) {
	const stateOf = id => app.list.states.get(id) ?? app.open.get(id)?.session.state ?? {}

	async function attempt(action) {
		try {
			return await action()
		} catch (error) {
			toast(error.message)
		}
	}

	async function change(id, changes) {
		const state = await app.api.change(id, changes)
		app.list.hear(state)
		app.open.get(id)?.session.hear(state)
	}

	async function rename({ id, title = '' }) {
		const name = await ask({ title: say('rename'), input: title, action: 'Rename' })
		if (name) attempt(() => change(id, { meta: { title: name } }))
	}

	const pin = (id, pinned) => attempt(() => change(id, { meta: { pinned: pinned || null } }))

	async function archive(id, archived) {
		await attempt(async () => {
			if (archived && stateOf(id).state !== 'closed') await app.api.close(id)
			await change(id, { meta: { archived: archived || null } })
			await app.list.look(id)
		})
		if (archived && app.current === id) app.go(null)
	}

	async function close({ id, title }) {
		const text = named(title) + say('close_text')
		if (await ask({ title: say('close'), text, action: 'Close session', danger: true }))
			attempt(async () => {
				await app.api.close(id)
				await app.list.look(id)
			})
	}

	async function purge({ id, title }) {
		const text = named(title) + say('delete_text')
		if (!(await ask({ title: 'Delete for good?', text, action: 'Delete for good', danger: true }))) return
		attempt(async () => {
			await app.api.purge(id)
			app.forget(id)
		})
	}

	const unread = id =>
		attempt(async () => {
			const head = (stateOf(id).head ?? 1) - 1
			const { unread } = await app.api.read(id, Math.max(0, head))
			app.list.hear({ session_id: id, unread })
			if (app.current === id) app.go(null)
		})

	async function download(id, format) {
		await attempt(async () => {
			const response = await app.api.fetch('GET', `/sessions/${id}/export?format=${format}`)
			const named = /filename="?([^";]+)/.exec(response.headers.get('Content-Disposition') ?? '')
			save(await response.blob(), named?.[1] ?? `conversation.${format}`)
		})
	}

	async function share({ id }) {
		const made = await attempt(() => app.api.call('POST', `/sessions/${id}/shares`, { label: 'From the page' }))
		if (!made) return
		const { showLink } = await app.load(() => import('./views/phone.js'))
		showLink({
			title: say('anyone_with'),
			text: say('it_shows'),
			link: made.url
		})
	}

	const revoke = id =>
		attempt(async () => {
			const { shares } = await app.api.call('GET', `/sessions/${id}/shares`)
			for (const { share_id: one } of shares) await app.api.call('DELETE', `/sessions/${id}/shares/${one}`)
			toast(shares.length ? 'The links no longer work.' : say('there'))
		})

	async function phone({ id }) {
		const { showPhone } = await app.load(() => import('./views/phone.js'))
		showPhone(id, app.api.token)
	}

	const keep = id => attempt(() => change(id, { retention_secs: null }))

	const policies = id => policyEntries(stateOf(id).permission, permission => attempt(() => change(id, { permission })))

	// The entries of a session's menu
	function entries({ id, title }) {
		const state = stateOf(id)
		const closed = state.state === 'closed'
		const archived = isArchived(state)
		const pinned = isPinned(state)
		const beside = app.wide() && app.current && app.current !== id
		return [
			entry('Rename…', 'pencil', () => rename({ id, title })),
			entry(pinned ? 'Unpin' : 'Pin', 'pin', () => pin(id, !pinned)),
			entry(archived ? say('take_out') : 'Archive', 'archive', () => archive(id, !archived)),
			entry('Mark as unread', 'dot', () => unread(id)),
			beside && entry(say('open'), 'columns', () => app.goBeside(id)),
			entry('Open on a phone…', 'phone', () => phone({ id })),
			entry(say('share_a'), 'globe', () => share({ id })),
			entry('Revoke all links', 'close', () => revoke(id)),
			entry('Save as Markdown', 'down', () => download(id, 'markdown')),
			entry('Save as HTML', 'down', () => download(id, 'html')),
			state.retention_secs != null && entry(say('keep'), 'clock', () => keep(id)),
			entry('Close session…', 'stop', () => close({ id, title }), { disabled: closed }),
			entry('Delete for good…', 'trash', () => purge({ id, title }), { danger: true })
		].filter(Boolean)
	}

	// A new session with the conversation up to a turn, or to before it
	/** @type {(session: Props, turn: Turn, how: Props) => Promise<void>} */
	const branch = (session, { index, prompt }, { again, send, ...more }) =>
		attempt(async () => {
			const { agent, permission, ...state } = session.state
			const at = again ? index - 1 : index
			const cwd = projectOf(session.state) ?? undefined
			const made = at
				? await app.api.call('POST', `/sessions/${session.id}/fork`, { turn_index: at, ...more })
				: await app.made({ agent, permission, cwd, model: (!more.agent && state.model) || undefined, ...more })
			app.list.hear(made)
			await app.go(made.session_id)
			const fresh = app.open.get(made.session_id)
			if (send) fresh.session.send({ prompt })
			else if (again) fresh.view.composer.put({ prompt })
		})

	function turnEntries(session, turn) {
		const retry = (name, more) => entry(name, '', () => branch(session, turn, { again: true, send: true, ...more }))
		const copy = entry('Copy prompt', 'copy', () => copyText(promptParts(turn.prompt).text))
		if (app.api.shared) return [copy]
		return [
			copy,
			entry(say('edit_and'), 'pencil', () => branch(session, turn, { again: true })),
			entry('Fork from here', 'fork', () => branch(session, turn, {})),
			{ heading: 'Try again with' },
			...(app.agents ?? []).filter(one => one.installed).map(({ name }) => retry(name, { agent: name })),
			...(session.model.models?.availableModels ?? []).map(({ id, name }) => retry(name, { model: id }))
		]
	}

	return { turnEntries, entries, policies, attempt, keep }
}

export function save(blob, name) {
	const link = document.createElement('a')
	link.href = URL.createObjectURL(blob)
	link.download = name
	link.click()
	setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}
