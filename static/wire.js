/**
 * One clawdforge session over a WebSocket: the reference client, without DOM or dependency, for any
 * browser and Node >= 22. Copy it; docs/reference/browser.md says how it is used, and what it promises.
 */

const MAX_FRAME = 4 * 1024 * 1024 // bytes; the server refuses longer ones (1009)
const BACKOFF_BASE = 500 // ms; the first limit of the delay, which doubles
const BACKOFF_CAP = 30_000 // up to this
const STABLE_AFTER = 10_000 // ms; a connection that lasted longer resets the delay
const OPEN_LIMIT = 15_000 // ms; from connecting to `ready`
const SILENCE_LIMIT = 45_000 // ms; the server sends a heartbeat every 20 s
const TAIL_LIMIT = 5_000 // ms; for the entries up to a heartbeat's head
const PONG_LIMIT = 5_000 // ms; for a pong after a wake-up

const TRANSIENT_CODES = ['rate_limited', 'draining'] // a prompt refused with one of them is sent again

export class WireError extends Error {
	code
	constructor(code, message, retryable = false) {
		super(message || code)
		Object.assign(this, { code, retryable })
	}
}

export function afterClose(code) {
	if (code >= 4500 && code < 5000) return 'stop'
	if (code === 4002) return 'restart'
	if (code === 1009) return 'shrink' // resume, but never resend the large frame
	if (code === 1013 || code === 4005) return 'slow'
	return 'resume'
}

export function backoff(attempt, random = Math.random) {
	return random() * Math.min(BACKOFF_CAP, BACKOFF_BASE * 2 ** attempt)
}

export class Wire {
	#url
	#credential
	#on
	#env
	#socket = null
	#status = { state: 'idle' }
	#last // seq of the newest entry handed on; null: live from now
	#attempt = 0
	#readyAt = 0
	#heardAt = 0
	#bye = null // the server's last frame, if it sent one
	#timers = {}
	#prompts = new Map() // id -> {frame, text, resolve, reject}: not accepted yet
	#answers = new Map() // request_id -> frame: permission answers, not confirmed yet

	/** @param {WireOptions} options */
	constructor({ url, credential, after = 0, on = {}, env = {} }) {
		this.#url = url
		this.#credential = credential
		this.#last = after
		this.#on = on
		this.#env = {
			WebSocket: globalThis.WebSocket,
			now: Date.now,
			random: Math.random,
			setTimeout: globalThis.setTimeout.bind(globalThis),
			clearTimeout: globalThis.clearTimeout.bind(globalThis),
			uuid: randomId,
			...env
		}
	}

	get status() {
		return this.#status
	}
	get last() {
		return this.#last
	}

	start() {
		const { state } = this.#status
		if (state === 'live' || state === 'connecting') return
		this.#attempt = 0
		this.#connect()
	}

	// Rejects the prompts that are not accepted yet
	stop() {
		this.#leave()
		this.#setStatus({ state: 'idle' })
		this.#rejectAll(new WireError('stopped', 'The connection was closed by this page.'))
	}

	wake() {
		const { state } = this.#status
		if (state === 'away') this.#connect()
		if (state !== 'live' || this.#timers.pong) return
		this.send({ type: 'ping', id: this.#env.uuid() })
		this.#timer('pong', PONG_LIMIT, () => this.#closed(1006, 'no pong'))
	}

	/**
	 * May be called at any time.
	 * @param {string | object[]} prompt text or ACP content blocks
	 * @param {{id?: string, files?: string[], steer?: boolean}} [options] files: tokens from POST /files
	 */
	prompt(prompt, { id = this.#env.uuid(), files, ...more } = {}) {
		const frame = { type: 'prompt', id, prompt, ...(files?.length && { files }), ...more }
		const text = JSON.stringify(frame)
		const accepted = new Promise((resolve, reject) => this.#prompts.set(id, { frame, text, resolve, reject }))
		accepted.catch(() => {})
		if (byteLength(text) > MAX_FRAME)
			this.#reject(id, new WireError('payload_too_large', 'The message exceeds the limit of 4 MiB.'))
		else if (!this.#timers.resend) this.send(frame, text) // else after those refused for now
		return { id, accepted }
	}

	cancel(turnIndex) {
		return this.send({ type: 'cancel', ...(turnIndex != null && { turn_index: turnIndex }) })
	}

	// An option of a permission request, null to cancel it, or the {action, content} of a question
	answer(requestId, answer) {
		const frame = {
			type: answer?.action ? 'elicitation' : 'permission',
			id: requestId,
			request_id: requestId,
			...(answer?.action ? answer : answer == null ? { outcome: 'cancelled' } : { option_id: answer })
		}
		this.#answers.set(requestId, frame)
		return this.send(frame)
	}

	// Sends any other frame at once; false without a live connection
	send(frame, text) {
		if (this.#status.state !== 'live') return false
		this.#write(frame, text)
		return true
	}

	async #connect() {
		this.#leave()
		this.#bye = null
		this.#setStatus({ state: 'connecting' })
		this.#timer('open', OPEN_LIMIT, () => this.#closed(1006, 'timeout'))
		const mine = (this.#socket = {})
		try {
			// Before the socket: the server allows 5 s between open and auth.
			const credential = await this.#credential()
			if (this.#socket === mine) this.#open(credential)
		} catch (error) {
			if (this.#socket === mine) this.#closed(1006, error.message)
		}
	}

	#open(credential) {
		const socket = (this.#socket = new this.#env.WebSocket(this.#url))
		const current = fn => event => socket === this.#socket && fn(event)
		socket.onopen = current(() =>
			this.#write({ type: 'auth', ...credential, ...(this.#last != null && { after: this.#last }) })
		)
		socket.onmessage = current(({ data }) => this.#received(data))
		socket.onclose = current(({ code, reason }) => this.#closed(code, reason))
	}

	#leave() {
		const socket = this.#socket
		this.#socket = null
		for (const name in this.#timers) this.#timer(name)
		socket?.close?.(1000)
	}

	#closed(code, reason) {
		const { state } = this.#status
		const why = this.#bye?.reason || reason
		const verdict = this.#on.closed?.(code) ?? afterClose(code)
		this.#leave()
		if (verdict === 'stop') {
			this.#setStatus({ state: 'stopped', code, reason: why })
			this.#rejectAll(new WireError(code === 4508 ? 'session_closed' : 'unauthorized', why || `Closed with ${code}.`))
			return
		}
		if (state === 'live' && this.#env.now() - this.#readyAt >= STABLE_AFTER) this.#attempt = 0
		if (verdict === 'slow') this.#attempt = Math.max(this.#attempt, 3)
		if (verdict === 'shrink') this.#rejectLargest()
		if (verdict === 'restart') {
			this.#last = 0
			this.#on.reset?.()
		}
		const wait = backoff(this.#attempt, this.#env.random) + (this.#bye?.retry_after_ms ?? 0)
		this.#attempt += 1
		this.#timer('retry', wait, () => this.#connect())
		this.#setStatus({ state: 'away', code, reason: why, retryAt: this.#env.now() + wait })
	}

	#received(data) {
		const frame = JSON.parse(data)
		this.#heardAt = this.#env.now()
		if (this.#timers.pong) this.#timer('pong')
		this.#on.frame?.('down', frame, data)
		if (typeof frame.seq === 'number') this.#entry(frame)
		else if (frame.type === 'ready') this.#ready(frame)
		else if (frame.type === 'accepted') this.#accepted(frame)
		else if (frame.type === 'error') this.#failed(frame)
		else if (frame.type === 'heartbeat') this.#heartbeat(frame.head)
		else if (frame.type === 'bye') this.#bye = frame
	}

	#ready(frame) {
		this.#readyAt = this.#env.now()
		this.#timer('open')
		this.#last ??= frame.head
		this.#setStatus({ state: 'live' })
		this.#on.ready?.(frame)
		this.#watch()
		this.#resend()
		for (const answer of this.#answers.values()) this.#write(answer)
	}

	#entry(entry) {
		if (entry.seq <= this.#last) return
		if (this.#last != null && entry.seq > this.#last + 1) return void this.#closed(1006, 'gap')
		this.#last = entry.seq
		// The turn of a prompt whose `accepted` was lost with a connection.
		if (entry.type === 'turn_start')
			this.#accepted({ id: entry.id, turn_index: entry.turn_index, queued: false, duplicate: true })
		if (['permission_resolved', 'elicitation_resolved'].includes(entry.type)) this.#answers.delete(entry.request_id)
		this.#on.entry?.(entry)
	}

	#accepted(frame) {
		const prompt = this.#prompts.get(frame.id)
		if (!prompt) return
		this.#prompts.delete(frame.id)
		prompt.resolve(frame)
		this.#on.accepted?.(frame)
	}

	#failed(frame) {
		const { id, code, message, retryable } = frame
		this.#answers.delete(id)
		if (!this.#prompts.has(id)) this.#on.error?.(frame)
		else if (TRANSIENT_CODES.includes(code))
			this.#timer('resend', (frame.retry_after_ms ?? 1000) + backoff(2, this.#env.random), () => this.#resend())
		else this.#reject(id, new WireError(code, message, Boolean(retryable)))
	}

	#heartbeat(head) {
		if (!(head > this.#last) || this.#timers.tail) return
		const seen = this.#last
		this.#timer('tail', TAIL_LIMIT, () => {
			if (this.#last === seen) this.#closed(1006, 'lost tail')
			else this.#heartbeat(head)
		})
	}

	#watch() {
		const left = SILENCE_LIMIT - (this.#env.now() - this.#heardAt)
		if (left <= 0) this.#closed(1006, 'silence')
		else this.#timer('silence', left, () => this.#watch())
	}

	#resend() {
		for (const { frame, text } of this.#prompts.values()) this.send(frame, text)
	}

	#write(frame, text = JSON.stringify(frame)) {
		this.#on.frame?.('up', frame, text)
		this.#socket.send(text)
	}

	#reject(id, error) {
		this.#prompts.get(id).reject(error)
		this.#prompts.delete(id)
		this.#on.rejected?.(id, error)
	}

	#rejectAll(error) {
		for (const id of [...this.#prompts.keys()]) this.#reject(id, error)
	}

	#rejectLargest() {
		const [largest] = [...this.#prompts.values()].sort((a, b) => b.text.length - a.text.length)
		if (largest)
			this.#reject(
				largest.frame.id,
				new WireError('payload_too_large', 'The server refused the message: it is too large.')
			)
	}

	#setStatus(status) {
		this.#status = status
		this.#on.status?.(status)
	}

	#timer(name, ms, fn) {
		this.#env.clearTimeout(this.#timers[name])
		delete this.#timers[name]
		if (!fn) return
		this.#timers[name] = this.#env.setTimeout(() => {
			delete this.#timers[name]
			fn()
		}, ms)
	}
}

function byteLength(text) {
	return text.length * 3 <= MAX_FRAME ? text.length : new TextEncoder().encode(text).length
}

// crypto.randomUUID is for secure origins only
function randomId() {
	return Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, '0')).join('')
}
