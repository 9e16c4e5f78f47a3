// The list of an app's sessions: the newest over REST, the open ones live through /ws
import { isRecord, list, record, records } from './normalise.js'

const PAGE = 100
const FIELDS =
	'agent,meta,state,created_at,last_turn_at,closed_at,close_reason,retention_secs,unread,head,cwd,workspace,' +
	'permission,asks,usage,queued,turn_index,turn_count,pending_permissions,pending_elicitations'
const POLL_EVERY = 30_000 // ms; only while /ws is refused

export class SessionList {
	#parts
	#wire
	#timer
	#asked = new Set()
	constructor(parts) {
		this.#parts = parts
		this.states = new Map()
		this.more = null
	}

	async load() {
		const { api } = this.#parts
		if (api.shared) return this.#take([await api.session(api.shared)])
		const more = await this.#page()
		this.more ??= more
	}

	async loadMore() {
		this.more = await this.#page({ cursor: this.more })
	}

	async #page(from) {
		const query = { limit: PAGE, state: 'idle,running,closed', fields: FIELDS, ...from }
		const { sessions, next_cursor: more } = await this.#parts.api.sessions(query)
		this.#take(sessions)
		return more ?? false
	}

	start() {
		const { api, Wire, url } = this.#parts
		if (api.shared) return
		this.#wire = new Wire({
			url: `${url}?fields=${FIELDS}`,
			credential: async () => ({ token: api.token }),
			after: null,
			on: {
				frame: (dir, frame) => dir === 'down' && this.#frame(frame),
				status: ({ state, code }) => {
					if (state !== 'stopped') return
					if (code === 4500 || code === 4503) this.#parts.refused()
					else this.#timer = setInterval(() => this.#reload(), POLL_EVERY)
				}
			}
		})
		this.#wire.start()
	}

	stop() {
		clearInterval(this.#timer)
		this.#wire?.stop()
	}

	wake() {
		this.#wire?.wake()
		this.#reload()
	}

	#reload() {
		return this.load().catch(() => {})
	}

	#frame(frame) {
		if (frame.type === 'ready') this.#ready(records(frame.sessions))
		else if (frame.type === 'session') this.#take([frame.session], true)
		else if (frame.type === 'session_gone') this.look(frame.session_id)
	}

	#ready(open) {
		const ids = new Set(open.map(one => one.session_id))
		for (const { session_id: id, state } of this.states.values()) if (state !== 'closed' && !ids.has(id)) this.look(id)
		this.#take(open, true)
	}

	// Closed, or deleted
	async look(id) {
		if (this.#asked.has(id)) return
		this.#asked.add(id)
		try {
			this.#take([await this.#parts.api.session(id)])
		} catch (error) {
			if (error.status === 404) this.forget(id)
		}
		this.#asked.delete(id)
	}

	forget(id) {
		if (this.states.delete(id)) this.#parts.on([])
	}

	/** @param {Props} state */
	hear(state) {
		this.#take([state])
	}

	#take(states, live = false) {
		const known = list(states).filter(one => isRecord(one) && typeof one.session_id === 'string')
		for (const state of known) this.states.set(state.session_id, { ...this.states.get(state.session_id), ...state })
		this.#parts.on(known, live)
	}
}

export const isPinned = ({ meta }) => record(meta).pinned === true
export const isArchived = ({ meta }) => record(meta).archived === true

// The folder that a person chose, or the repository of the session's worktree; null for a folder of its own
export function projectOf({ session_id: id, cwd, workspace }) {
	const repository = record(record(workspace).git).repository
	if (typeof repository === 'string') return repository
	return typeof cwd === 'string' && !cwd.endsWith(`/workspaces/${id}`) ? cwd : null
}

export const nameOf = path => path.split('/').filter(Boolean).at(-1) ?? path
