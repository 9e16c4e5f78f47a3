export const addressOf = path => new URL(`.${path}`, document.baseURI).href

class ApiError extends Error {
	constructor(status, body) {
		super(body?.error ?? (status ? `The server answered ${status}.` : 'The server cannot be reached.'))
		this.status = status
		this.code = body?.code
	}
}

export class Api {
	#onUnauthorized

	constructor(token, onUnauthorized, shared) {
		this.token = token
		this.#onUnauthorized = onUnauthorized
		this.shared = shared
	}

	sessions = query => this.call('GET', `/sessions?${new URLSearchParams(query)}`)
	async agents() {
		return (await this.call('GET', '/agents')).agents
	}
	create = options => this.call('POST', '/sessions', options)
	session = id => this.call('GET', `/sessions/${id}`)
	async change(id, changes) {
		// The session's own socket reports the queue, perhaps a newer one
		const { queued, ...state } = await this.call('PATCH', `/sessions/${id}`, changes)
		return state
	}
	update = (id, meta) => this.change(id, { meta })
	close = id => this.call('DELETE', `/sessions/${id}`)
	purge = id => this.call('DELETE', `/sessions/${id}?purge=true`)
	reopen = id => this.call('POST', `/sessions/${id}/reopen`)
	read = (id, seq) => this.call('POST', `/sessions/${id}/read`, { seq })
	files = (id, folder, levels = 1) =>
		this.call('GET', `/sessions/${id}/files?${new URLSearchParams({ path: folder, depth: String(levels) })}`)
	answer = (id, request, option) =>
		this.call(
			'POST',
			`/sessions/${id}/permissions/${encodeURIComponent(request)}`,
			option === null ? { outcome: 'cancelled' } : { option_id: option }
		)
	async search(q, limit = 20) {
		return (await this.call('GET', `/search?${new URLSearchParams({ q, limit: String(limit) })}`)).hits
	}

	// XHR, because fetch reports no progress
	upload(file, onprogress) {
		const xhr = new XMLHttpRequest()
		const done = new Promise((resolve, reject) => {
			const form = new FormData()
			form.append('file', file, file.name)
			xhr.open('POST', addressOf('/files'))
			xhr.setRequestHeader('Authorization', `Bearer ${this.token}`)
			xhr.responseType = 'json'
			xhr.upload.onprogress = ({ loaded, total }) => onprogress(loaded / total)
			xhr.onloadend = () =>
				xhr.response?.file_token ? resolve(xhr.response) : reject(new ApiError(xhr.status, xhr.response))
			xhr.send(form)
		})
		return { done, abort: () => xhr.abort() }
	}

	async call(method, path, body) {
		return (await this.fetch(method, path, body)).json().catch(() => null)
	}

	// The answer itself; throws if it is a refusal
	async fetch(method, path, body) {
		const headers = { Authorization: `Bearer ${this.token}`, 'Content-Type': 'application/json' }
		/** @type {RequestInit} */
		const sent = { method, headers, body: body && JSON.stringify(body), cache: 'no-store' }
		const response = await fetch(addressOf(path), sent).catch(() => null)
		if (response?.ok) return response
		const error = new ApiError(response?.status ?? 0, await response?.json().catch(() => null))
		if (error.status === 401) this.#onUnauthorized()
		throw error
	}
}
