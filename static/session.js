// on(name, fn): 'change' (often), 'synced', 'frame', 'changes' (of files), 'problem' (a sentence),
// 'withdrawn' ({prompt, files})
import { records, titleOf } from './normalise.js'
import { changesFiles, createTranscript, promptParts, reduce, seed } from './transcript.js'

const FRAMES_KEPT = 500
const MAX_TITLE = 200 // characters
const READ_BACK_AFTER = 700 // ms
const MAX_PREVIEW = 1000 // characters

export class Session {
	#listeners = {}
	#parts
	#timer

	constructor(id, state, parts) {
		this.#parts = parts
		this.id = id
		this.state = state
		this.model = createTranscript()
		this.outbox = new Map()
		this.queue = new Map()
		this.sent = new Map() // turn_index -> {prompt, files}, of turns that wait
		this.withdrawing = new Map() // turn_index -> what happens with the {prompt, files}
		this.frames = []
		this.synced = false
		this.changed = [] // files
		this.changeCount = 0 // counts changes that GET /sessions shows too
		this.wire = new parts.Wire({
			url: parts.url,
			credential: async () => ({ token: parts.api.token }),
			on: {
				entry: entry => this.#entry(entry),
				ready: frame => this.#ready(frame),
				accepted: frame => this.#accepted(frame),
				error: frame => this.#failed(frame),
				status: () => this.#emit('change'),
				frame: (dir, frame, text) => this.#frame(dir, frame, text),
				reset: () => Object.assign(this, { model: createTranscript(), synced: false })
			}
		})
	}

	start() {
		for (const saved of this.#parts.storage.outbox(this.id)) {
			if (saved.error || saved.state === 'paused') this.outbox.set(saved.id, saved)
			else this.send(saved)
		}
		this.wire.start()
	}

	stop() {
		clearTimeout(this.#timer)
		this.#listeners = {}
		this.wire.stop()
	}

	on(name, listener) {
		;(this.#listeners[name] ??= new Set()).add(listener)
		return () => this.#listeners[name]?.delete(listener)
	}

	#emit(name, value) {
		for (const listener of this.#listeners[name] ?? []) {
			try {
				listener(value)
			} catch (error) {
				console.error(error)
			}
		}
	}

	get title() {
		return titleOf(this.state?.meta) || this.model.title || ''
	}
	get #firstWords() {
		return firstLine(promptParts(this.model.turns[0]?.prompt).text)
	}
	get agent() {
		return this.state?.agent ?? 'the agent'
	}
	get running() {
		return this.model.running.size > 0
	}
	get waiting() {
		return this.model.waiting.size > 0
	}
	get closed() {
		return Boolean(this.model.closed || this.state?.closed_at)
	}

	history() {
		const texts = this.model.turns.map(({ prompt }) => promptParts(prompt).text)
		return texts.filter((text, index) => text && text !== texts[index - 1])
	}

	/** @param {{id?: string, prompt: any, files?: any[], steer?: boolean}} message */
	send({ id, prompt, files = [], steer }) {
		const sent = this.wire.prompt(prompt, { id, files, ...(steer && { steer }) })
		this.outbox.set(sent.id, { id: sent.id, prompt, files, state: 'sending' })
		sent.accepted.catch(error => this.#rejected(sent.id, error))
		this.#changedOutbox()
		const line = firstLine(promptParts(prompt).text)
		if (!this.title && line) this.named = this.rename(line).catch(() => {})
	}

	discard({ id }) {
		this.outbox.delete(id)
		this.#changedOutbox()
	}

	// When this arrives, the next turn may run
	cancel(turnIndex = [...this.model.running][0]) {
		if (turnIndex !== undefined) this.#tell(this.wire.cancel(turnIndex))
	}

	// Only if the agent did not receive it
	withdraw(turnIndex, take = sent => this.#emit('withdrawn', sent)) {
		this.withdrawing.set(turnIndex, take)
		this.cancel(turnIndex)
	}

	// Stops the turn. The server starts none of the prompts that wait: they are kept here
	pause() {
		for (const index of this.queue.keys())
			this.withdraw(index, sent => {
				const id = `turn ${index}`
				this.outbox.set(id, { id, ...sent, state: 'paused' })
				this.#changedOutbox()
			})
		this.cancel()
	}

	resume() {
		for (const { id, state, prompt, files } of this.outbox.values()) {
			if (state !== 'paused') continue
			this.outbox.delete(id)
			this.send({ prompt, files })
		}
	}

	// Changes or moves a prompt that waits
	requeue(turnIndex, change) {
		this.#tell(this.wire.send({ type: 'queue', turn_index: turnIndex, ...change }))
		this.#readBack()
	}

	// A prompt that waits goes to the running turn
	sendNow(turnIndex) {
		this.withdraw(turnIndex, sent => {
			this.send({ ...sent, steer: true })
			return true
		})
	}

	// A prompt that waits; null if only its beginning is known, which the server shows
	waitingPrompt(turnIndex) {
		const { prompt } = this.queue.get(turnIndex)
		const { text } = promptParts(prompt)
		return this.sent.get(turnIndex) ?? (text.length < MAX_PREVIEW && !/\[\w+\]/.test(text) ? { prompt } : null)
	}

	set(kind, value, key) {
		this.#tell(this.wire.send({ type: `set_${kind}`, ...(key ? { key, value } : { [kind]: value }) }))
		this.#readBack()
	}

	async reopen() {
		const state = await this.#parts.api.reopen(this.id)
		this.model.closed = null
		this.hear(state)
		return state
	}

	async rename(title) {
		this.hear(await this.#parts.api.update(this.id, { title }))
	}

	hear(state) {
		this.changeCount += 1
		this.state = { ...this.state, ...state }
		// Another client has opened it again
		if (state.closed_at === null && this.wire.status.code === 4508) this.wire.start()
		if (Array.isArray(state.queued)) this.queue = new Map(records(state.queued).map(one => [one.turn_index, one]))
		seed(this.model, state)
		if (this.synced) this.#emit('change')
	}

	#tell(sent) {
		if (!sent) this.#emit('problem', 'There is no connection.')
	}

	// Not every agent reports the result of a setting
	#readBack() {
		clearTimeout(this.#timer)
		this.#timer = setTimeout(() => {
			this.changeCount += 1
			this.look()
		}, READ_BACK_AFTER)
	}

	// Which files the agent has changed, once a turn can have changed some
	async lookAtChanges() {
		const turn = this.model.turns.at(-1)
		const look = since => this.#parts.api.call('GET', `/sessions/${this.id}/changes${since}`).catch(() => null)
		const [all, last] = await Promise.all([look(''), turn && look(`?since_turn=${turn.index}`)])
		if (!all) return
		this.changed = records(all.files)
		// Also files that no call of the turn has named
		if (last && turn === this.model.turns.at(-1)) {
			turn.files = records(last.files).length
			this.model.dirty.add(turn)
		}
		this.#emit('changes')
		this.#emit('change')
	}

	#mayHaveChanged(turns) {
		const { api } = this.#parts
		if (!api.shared && turns.some(({ items }) => items.some(changesFiles))) this.lookAtChanges()
	}

	look() {
		return (this.looking ??= this.#look().finally(() => (this.looking = null)))
	}

	async #look() {
		let count
		let state
		while (count !== this.changeCount) {
			count = this.changeCount
			state = await this.#parts.api.session(this.id).catch(() => null)
		}
		if (state) this.hear(state)
	}

	#entry(entry) {
		const { model } = this
		reduce(model, entry)
		if (entry.type === 'turn_start') {
			this.changeCount += 1
			this.asked = false
			this.queue.delete(entry.turn_index)
			if (this.outbox.delete(entry.id)) this.#changedOutbox()
		} else if (this.synced && !this.asked && !model.modes && !model.configOptions) {
			this.asked = true
			this.#readBack()
		}
		if (entry.notice === 'asks' && this.synced) this.hear({ asks: entry.asks })
		if (entry.type === 'turn_end') this.#ended(entry.turn_index)
		this.#changed()
	}

	#ended(index) {
		const turn = this.model.byIndex.get(index)
		const { prompt, withdrawn } = turn
		const sent = this.sent.get(index) ?? { prompt, files: [] }
		this.sent.delete(index)
		const take = this.withdrawing.get(index)
		this.withdrawing.delete(index)
		// Its prompt is shown where it is now
		turn.elsewhere = Boolean(withdrawn && take?.(sent)) || this.outbox.has(`turn ${index}`)
		if (!this.synced) return
		this.#mayHaveChanged([turn])
		this.#takeTitle().catch(() => {})
	}

	async #takeTitle() {
		await this.named // a turn may end before that
		const { title } = this.model
		if (title && title !== this.title && this.title === this.#firstWords)
			await this.rename(title.slice(0, MAX_TITLE).toWellFormed())
	}

	#ready(frame) {
		this.hear(frame)
		this.#changed()
	}

	#changed() {
		if (!this.synced && this.model.head >= this.state.head) {
			this.synced = true
			this.#emit('synced')
			this.#mayHaveChanged(this.model.turns)
		}
		if (this.synced) this.#emit('change')
	}

	#accepted({ id, turn_index: index, queued, duplicate, steered }) {
		const sent = this.outbox.get(id)
		if (!sent) return
		sent.state = 'accepted'
		this.changeCount += 1
		if (queued && !this.model.byIndex.has(index)) {
			this.queue.set(index, { turn_index: index, prompt: sent.prompt })
			this.sent.set(index, { prompt: sent.prompt, files: sent.files })
		}
		if (queued || duplicate || steered) this.outbox.delete(id)
		this.#changedOutbox()
	}

	#rejected(id, error) {
		const sent = this.outbox.get(id)
		if (!sent || error.code === 'stopped') return
		Object.assign(sent, { state: 'failed', error: error.message })
		this.#changedOutbox()
	}

	#failed(problem) {
		const { id, code, message } = problem
		const asked = this.model.waiting.get(id)
		if (code !== 'not_found') {
			if (asked) {
				Object.assign(asked, { problem, refused: asked.refused + 1 })
				this.model.dirty.add(asked.tool)
				this.#emit('change')
			}
			if (!asked?.fields) this.#emit('problem', message)
		}
		this.#readBack()
	}

	#changedOutbox() {
		const unsure = [...this.outbox.values()].filter(({ state }) => state !== 'accepted')
		this.#parts.storage.saveOutbox(this.id, unsure)
		this.#emit('change')
	}

	#frame(dir, { type, after }, text) {
		this.frames.push({
			dir,
			text: type === 'auth' ? JSON.stringify({ type, token: '…', after }) : text,
			ts: Date.now()
		})
		if (this.frames.length > 2 * FRAMES_KEPT) this.frames.splice(0, FRAMES_KEPT)
		this.#emit('frame')
	}
}

const firstLine = text => text.trim().split('\n')[0].slice(0, 80).toWellFormed()
