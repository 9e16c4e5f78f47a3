// docs/reference/browser.md describes the model. Pure: no clock, no random numbers, no DOM
import {
	block,
	blocks,
	commands,
	configOptions,
	failure,
	identity,
	isRecord,
	list,
	models,
	modes,
	number,
	options,
	planEntries,
	question,
	record,
	string,
	toolCall,
	usage,
	words
} from './normalise.js'

const MAX_RAW = 200

/** @returns {Model} */
export function createTranscript() {
	/** @type {Model} */
	const model = {
		kind: 'session',
		head: 0,
		turns: [],
		running: new Set(),
		waiting: new Map(),
		modes: null,
		models: null,
		configOptions: null,
		commands: null,
		usage: null,
		title: null,
		closed: null
	}
	return hide(model, {
		dirty: new Set(),
		byIndex: new Map(),
		calls: new Map(),
		requests: new Map(),
		messages: new Map(),
		seededAt: 0
	})
}

// The server's state overrides the log up to its head
/** @param {Model} model */
export function seed(model, state) {
	const { head, model: current } = state
	model.seededAt = Math.max(model.seededAt, number(head, 0))
	const settings = {
		modes: modes(state.modes),
		models: models(state.models, current),
		configOptions: settled(state.config_options, configOptions),
		commands: settled(state.commands, commands),
		usage: usage(state.usage)
	}
	for (const [name, value] of Object.entries(settings)) if (value) set(model, name, value)
}

const settled = (value, normalise) => (Array.isArray(value) ? normalise(value) : null)

/**
 * @param {Model} model
 * @param {Frame} entry
 */
export function reduce(model, entry) {
	const handler = ENTRIES[string(entry.type)]
	model.head = entry.seq
	try {
		if (handler) handler(model, entry)
		else addRaw(model, entry, words(entry.type, 'entry'), entry)
	} catch (error) {
		console.error(error)
		addRaw(model, entry, words(entry.type, 'entry'), entry)
	}
	return model
}

const ENTRIES = {
	__proto__: null,
	turn_start(model, entry) {
		const { prompt, id, context, ts } = entry
		const turn = turnOf(model, entry)
		Object.assign(turn, {
			prompt: blocks(prompt),
			id: string(id, null),
			context: string(context, 'kept'),
			startedAt: ts,
			status: 'running'
		})
		model.running.add(turn.index)
	},

	// A prompt that was added to the running turn.
	turn_steer: (model, entry) => addMessage(model, 'user', entry.prompt, entry),

	turn_end(model, entry) {
		const turn = turnOf(model, entry)
		for (const place of [turn, ...turn.subagents]) closeText(model, place, entry.ts)
		Object.assign(turn, {
			status: 'ended',
			stopReason: string(entry.stop_reason, 'error'),
			durationMs: number(entry.duration_ms),
			error: failure(entry.error)
		})
		const { cost } = record(entry.usage)
		if (isRecord(cost)) turn.usage = { totalTokens: null, ...turn.usage, cost }
		// The duration is 0 if the agent never received the prompt.
		if (entry.withdrawn ?? (entry.stop_reason === 'cancelled' && entry.duration_ms === 0 && !turn.items.length))
			turn.withdrawn = true
		for (const tool of turn.open) {
			tool.abandoned = true
			touch(model, tool)
		}
		turn.open.clear()
		model.running.delete(turn.index)
		for (const [requestId, permission] of model.waiting) {
			if (permission.turnIndex !== turn.index) continue
			permission.over = true
			model.waiting.delete(requestId)
			touch(model, permission.tool)
		}
	},

	event(model, entry) {
		const { event } = entry
		const { method, params, result, error } = record(event)
		if (typeof method === 'string') update(model, entry, method, params)
		else if (isRecord(result)) {
			if (isRecord(result.usage)) turnOf(model, entry).usage = { totalTokens: number(result.usage.totalTokens) }
		} else if (error) turnOf(model, entry).failure = detailOf(record(error).data)
		else addRaw(model, entry, 'message', event)
	},

	permission_request(model, entry) {
		const { request_id: requestId, expires_at: expiresAt } = entry
		if (model.requests.has(requestId)) return
		const request = record(entry.request)
		const asked = record(request.toolCall)
		const tool = mergeTool(
			model,
			{ ...asked, toolCallId: identity(asked.toolCallId) ?? `permission:${requestId}` },
			inside(model, entry, request.sessionId) ?? entry
		)
		const { title, toolKind, content, locations, input, turnIndex } = tool
		const permission = {
			requestId,
			turnIndex,
			call: { title, toolKind, content, locations, input },
			options: options(request.options),
			expiresAt: number(expiresAt),
			outcome: null,
			by: null,
			over: false,
			refused: 0
		}
		tool.permissions.push(hide(permission, { tool }))
		wait(model, permission)
	},

	permission_resolved: (model, entry) =>
		resolve(model, entry, ({ optionId }) => ({ optionId: string(optionId, null) })),

	elicitation_request(model, entry) {
		const { request_id: requestId } = entry
		if (model.requests.has(requestId)) return
		const asked = question(entry.request)
		const { sessionId } = record(entry.request)
		const call = { title: asked.message, toolKind: 'question', locations: [] }
		const expiresAt = number(entry.expires_at)
		const fields = {
			requestId,
			...asked,
			call,
			expiresAt,
			done: false,
			outcome: null,
			by: null,
			over: false,
			refused: 0
		}
		const item = add(model, inside(model, entry, sessionId) ?? entry, 'question', fields)
		wait(model, hide(item, { tool: item }))
	},

	elicitation_resolved: (model, entry) =>
		resolve(model, entry, ({ action, content }) => ({ action: string(action), content: record(content) })),

	session_reopened: model => set(model, 'closed', null),

	session_closed: (model, { reason }) => set(model, 'closed', { reason: string(reason) }),

	notice(model, entry) {
		const { notice, setting, value, text, restored_turn: turn, incomplete } = entry
		const tell = (note, title) => add(model, entry, 'note', { note, title, text: '' })
		if (notice === 'restored' && typeof setting === 'string' && typeof value === 'string')
			tell('mode', `The server set ${setting} to ${value} again`)
		else if (notice === 'undone')
			tell('undone', `Files restored${incomplete ? ' in part' : ''}${turn ? ` to before turn ${turn}` : ''}`)
		else if (notice === 'limit' && typeof text === 'string') tell('warning', text)
		// The header shows whether the agent asks.
		else if (notice !== 'asks') addRaw(model, entry, 'notice', entry)
	}
}

function update(model, entry, method, params) {
	if (method === 'elicitation/complete' && complete(model, record(params)) !== UNKNOWN) return
	const one = method === 'session/update' ? record(params).update : null
	const name = record(one).sessionUpdate
	if (entry.subagent && SETTINGS.has(name)) return
	const handler = typeof name === 'string' ? UPDATES[name] : null
	if (!handler || handler(model, one, entry) === UNKNOWN)
		addRaw(model, entry, words(name, method), isRecord(one) ? one : params)
}

function wait(model, asked) {
	model.requests.set(asked.requestId, asked)
	model.waiting.set(asked.requestId, asked)
}

function resolve(model, { request_id: requestId, outcome, by }, normalise) {
	const asked = model.requests.get(requestId)
	model.waiting.delete(requestId)
	if (!asked || asked.outcome) return
	Object.assign(asked, { outcome: normalise(record(outcome)), by: string(by) })
	touch(model, asked.tool)
}

// The person is done with a link
function complete(model, { elicitationId }) {
	const id = identity(elicitationId)
	const item = [...model.requests.values()].find(one => id !== null && one.elicitationId === id)
	if (!item) return UNKNOWN
	item.done = true
	touch(model, item)
}

const UNKNOWN = Symbol('unknown')

// Of a subagent, they are not those of the session
const SETTINGS = new Set(
	['available_commands', 'config_option', 'current_mode', 'session_info', 'usage'].map(name => `${name}_update`)
)

const UPDATES = {
	__proto__: null,
	agent_message_chunk: (model, chunk, entry) => addText(model, 'message', chunk, entry),
	agent_thought_chunk: (model, chunk, entry) => addText(model, 'thought', chunk, entry),
	user_message_chunk(model, chunk, entry) {
		const { text } = record(chunk.content)
		if (entry.subagent || typeof text !== 'string' || !textOf(turnOf(model, entry).prompt).includes(text))
			addText(model, 'user', chunk, entry)
	},
	tool_call: (model, call, entry) => void mergeTool(model, call, entry),
	tool_call_update: (model, call, entry) =>
		identity(call.toolCallId) === null ? UNKNOWN : void mergeTool(model, call, entry, true),
	plan(model, { entries }, entry) {
		if (!Array.isArray(entries)) return UNKNOWN
		const place = placeOf(model, entry)
		place.plan ??= add(model, entry, 'plan', {})
		place.plan.entries = planEntries(entries)
		model.dirty.add(place.plan)
	},
	available_commands_update: (model, { availableCommands: all }, entry) =>
		Array.isArray(all) ? set(model, 'commands', commands(all), entry) : UNKNOWN,
	config_option_update: (model, { configOptions: all }, entry) =>
		Array.isArray(all) ? set(model, 'configOptions', configOptions(all), entry) : UNKNOWN,
	current_mode_update(model, { currentModeId: given }, entry) {
		const currentModeId = identity(given)
		if (currentModeId === null) return UNKNOWN
		const known = model.modes ?? { currentModeId: null, availableModes: [] }
		if (entry.seq > model.seededAt && known.currentModeId !== currentModeId) {
			const name = known.availableModes.find(({ id }) => id === currentModeId)?.name ?? currentModeId
			add(model, entry, 'note', { note: 'mode', title: `Mode is now ${name}`, text: '' })
		}
		set(model, 'modes', { ...known, currentModeId }, entry)
	},
	session_info_update(model, { title }, entry) {
		if (title === undefined) return
		if (title !== null && typeof title !== 'string') return UNKNOWN
		set(model, 'title', title, entry)
	},
	usage_update: (model, change) => void set(model, 'usage', usage(change)),
	notice: (model, { severity, title, description }, entry) =>
		void add(model, entry, 'note', { note: string(severity), title: words(title, ''), text: words(description, '') }),

	// The agent shortens its memory of the conversation
	compaction_update(model, { compactionId, status, summary, error }, entry) {
		const told = error == null ? summary : [...list(summary), { type: 'text', text: words(error) }]
		return compact(model, entry, compactionId, told, { status: status === 'cancelled' ? 'pending' : status })
	},
	compaction_summary_chunk(model, { compactionId, content }, entry) {
		const id = identity(compactionId)
		const known = turnOf(model, entry).tools.get(keyOf(entry, COMPACTION + id))?.content ?? []
		const before = known.map(one => one.content)
		const last = before.at(-1)
		const next = block(content)
		const joined = last?.type === 'text' && next.type === 'text'
		if (joined) before.splice(-1, 1, { type: 'text', text: last.text + next.text })
		return compact(model, entry, id, joined ? before : [...before, next], { status: 'in_progress' })
	},

	// The session of a subagent begins, or changes
	subagent_update(model, { sessionId, title, description, state: given }, entry) {
		const id = identity(sessionId)
		if (id === null) return UNKNOWN
		const { state, stopReason, error } = record(given)
		const failed = stopReason === 'error'
		const call = {
			toolCallId: NAMED + id,
			title:
				[title, description]
					.map(one => words(one, ''))
					.filter(Boolean)
					.join(' · ') || null,
			status: state === 'idle' ? (failed ? 'failed' : 'completed') : STATES[string(state)]
		}
		const host = mergeTool(model, call, entry, true, call.toolCallId)
		host.title ||= SUBAGENT
		thread(model, host, entry)
		if (stopReason === 'cancelled') Object.assign(host, { status: 'pending', endedAt: null, abandoned: true })
		if (failed && error)
			add(model, inside(model, entry, id), 'note', { note: 'error', title: words(record(error).message, ''), text: '' })
	},
	// Between a subagent and its parent: both sides report it
	session_message(model, { messageId, senderSessionId, recipientSessionId, content }, entry) {
		const ids = [record(entry.subagent).session_id, senderSessionId, recipientSessionId]
		const id = ids.find(one => inside(model, entry, one))
		if (id === undefined) return UNKNOWN
		const kind = id === senderSessionId ? 'message' : 'user'
		const at = inside(model, entry, id)
		model.messages.set(identity(messageId), { kind, id })
		const said = textOf(blocks(content))
		if (!placeOf(model, at).items.some(({ parts }) => parts && textOf(parts) === said))
			addMessage(model, kind, content, at)
	},
	session_message_chunk(model, { messageId, content }, entry) {
		const { kind, id } = model.messages.get(identity(messageId)) ?? {}
		if (!kind) return UNKNOWN
		addText(model, kind, { content, messageId }, inside(model, entry, id))
	}
}

const COMPACTION = 'compaction:'

// It is shown as a call, with the summary that the agent goes on with
function compact(model, entry, given, summary, change) {
	const id = identity(given)
	if (id === null) return UNKNOWN
	const content = Array.isArray(summary) ? summary.map(one => ({ type: 'content', content: one })) : null
	const call = { toolCallId: COMPACTION + id, title: 'Summary of the conversation so far', kind: 'think' }
	mergeTool(model, { ...call, ...change, content }, entry, true)
}

// The call of a subagent that has a session instead of a call of its parent
const NAMED = 'subagent:'
const SUBAGENT = 'Subagent'
const STATES = { __proto__: null, running: 'in_progress', requires_action: 'in_progress' }

// The same entry as one of a subagent, if that session is known
const inside = (model, entry, id) =>
	identity(id) !== null && model.calls.has(NAMED + id) ? { ...entry, subagent: { session_id: id } } : null

// The turn of an entry, or the call of the subagent that it is of
function placeOf(model, entry) {
	const turn = turnOf(model, entry)
	const { session_id: session, tool_call_id: call } = record(entry.subagent)
	const [own, parent] = [identity(session), identity(call)]
	if (own === null && parent === null) return turn
	const key = own === null ? parent : NAMED + own
	let host = turn.tools.get(key) ?? turn.tools.get(parent)
	if (!host) {
		const started = { toolCallId: key, status: 'in_progress' }
		host = mergeTool(model, started, { ...entry, subagent: null }, true)
		host.title ||= SUBAGENT
	}
	turn.tools.set(key, host)
	return thread(model, host, entry)
}

// A subagent is a call with items of its own
function thread(model, host, entry) {
	if (!host.items) {
		host.items = []
		hide(host, { text: null, plan: null })
		turnOf(model, entry).subagents.add(host)
	}
	return host
}

// Marks an item as changed, and the subagents that it is of
function touch(model, item) {
	for (let one = item; one; one = one.host) model.dirty.add(one)
}

function turnOf(model, { turn_index: given, ts }) {
	const index = Number.isSafeInteger(given) ? given : 0
	let turn = model.byIndex.get(index)
	if (!turn) {
		turn = {
			kind: 'turn',
			index,
			prompt: null,
			id: null,
			context: 'kept',
			status: 'ended',
			startedAt: ts,
			stopReason: null,
			durationMs: null,
			error: null,
			failure: null,
			usage: null,
			plan: null,
			items: []
		}
		hide(turn, { tools: new Map(), open: new Set(), subagents: new Set(), text: null })
		model.byIndex.set(index, turn)
		model.turns.push(turn)
	}
	model.dirty.add(turn)
	return turn
}

function add(model, entry, kind, fields) {
	const place = placeOf(model, entry)
	closeText(model, place, entry.ts)
	const item = { kind, turnIndex: turnOf(model, entry).index, startedAt: entry.ts, ...fields }
	if (place.kind === 'tool') hide(item, { host: place })
	place.items.push(item)
	touch(model, item)
	return item
}

function addText(model, kind, { content: given, messageId: id }, entry) {
	const place = placeOf(model, entry)
	const content = block(given)
	const messageId = identity(id)
	let item = place.text
	if (item?.kind !== kind || item.messageId !== messageId) {
		item = add(model, entry, kind, { messageId, parts: [] })
		place.text = item
	}
	const last = item.parts.at(-1)
	const isText = content.type === 'text'
	if (isText && last?.type === 'text') last.text += content.text
	else item.parts.push(isText ? { type: 'text', text: content.text } : content)
	item.endedAt = entry.ts
	item.done = turnOf(model, entry).stopReason !== null
	model.dirty.add(item)
}

// A whole message
function addMessage(model, kind, content, entry) {
	const place = placeOf(model, entry)
	closeText(model, place, entry.ts)
	for (const one of blocks(content)) addText(model, kind, { content: one, messageId: null }, entry)
	closeText(model, place, entry.ts)
}

function closeText(model, place, ts) {
	if (!place.text) return
	Object.assign(place.text, { done: true, endedAt: ts })
	model.dirty.add(place.text)
	place.text = null
}

function addRaw(model, entry, name, data) {
	const last = placeOf(model, entry).items.at(-1)
	if (last?.kind !== 'raw' || last.name !== name) return void add(model, entry, 'raw', { name, count: 1, data: [data] })
	last.count += 1
	if (last.count <= MAX_RAW) last.data.push(data)
	model.dirty.add(last)
}

// The calls of a subagent with a session have ids of their own
function keyOf({ subagent }, id) {
	const own = identity(record(subagent).session_id)
	return own === null || id === null ? id : `${own} ${id}`
}

// An id identifies one call within its turn; a change supplies missing fields from an earlier turn
function mergeTool(model, change, entry, isChange = false, key = keyOf(entry, identity(change.toolCallId))) {
	const id = identity(change.toolCallId)
	const turn = turnOf(model, entry)
	if (!turn.tools.has(key)) placeOf(model, entry) // which may be its own
	let tool = turn.tools.get(key)
	if (!tool) {
		const earlier = isChange ? model.calls.get(key) : null
		tool = add(model, entry, 'tool', {
			id,
			title: earlier?.title ?? '',
			toolKind: earlier?.toolKind ?? 'other',
			status: 'pending',
			content: [],
			locations: [],
			input: undefined,
			output: undefined,
			terminal: null,
			permissions: [],
			abandoned: false,
			endedAt: null
		})
		if (id !== null) for (const known of [turn.tools, model.calls]) known.set(key, tool)
	}
	// Absent and null mean unchanged; lists are replaced whole.
	const fields = toolCall(change)
	for (const name in fields) if (fields[name] != null) tool[name] = fields[name]
	const ended = tool.status === 'completed' || tool.status === 'failed'
	tool.endedAt = ended ? (tool.endedAt ?? entry.ts) : null
	if (ended) {
		turn.open.delete(tool)
		closeText(model, tool, entry.ts)
	} else if (turn.status === 'running') {
		turn.open.add(tool)
		tool.abandoned = false // a subagent that was stopped may go on
	} else tool.abandoned = true
	// Agents stream output here if the client has no terminal.
	const { terminal_output: output, terminal_exit: exit } = record(change._meta)
	if (isRecord(output) || isRecord(exit)) {
		tool.terminal ??= { output: '', exit: null }
		tool.terminal.output += string(record(output).data)
		tool.terminal.exit = number(record(exit).exit_code, tool.terminal.exit)
	}
	touch(model, tool)
	return tool
}

function set(model, name, value, entry) {
	if (entry?.seq <= model.seededAt && model[name]) return
	model[name] = value
	model.dirty.add(model)
}

export function textOf(parts) {
	return list(parts)
		.map(part => (part?.type === 'text' ? part.text : ''))
		.join('')
}

/** @param {Props} turn */
export const answerOf = ({ items }) =>
	items
		.filter(({ kind }) => kind === 'message')
		.map(({ parts }) => textOf(parts))
		.join('\n\n')

const LOOKS = new Set(['read', 'search', 'fetch', 'think', 'switch_mode'])

export const explores = ({ kind, toolKind }) => kind === 'tool' && (toolKind === 'read' || toolKind === 'search')
/** @type {(item: Props) => boolean} */
export const changesFiles = ({ kind, toolKind, items = [] }) =>
	(kind === 'tool' && !LOOKS.has(toolKind)) || items.some(changesFiles)

// The files that the calls of a turn report to have changed
export const changedPaths = ({ items }) => new Set(items.flatMap(pathsOf))

function pathsOf({ kind, status, content, toolKind, locations, items = [] }) {
	const inside = items.flatMap(pathsOf)
	if (kind !== 'tool' || status !== 'completed') return inside
	const diffs = content.filter(({ type }) => type === 'diff')
	const changed = diffs.length ? diffs : ['edit', 'delete', 'move'].includes(toolKind) ? locations : []
	return [...inside, ...changed.map(({ path }) => path)]
}

/** Whether a request is not answered yet. */
export const isOpen = ({ outcome, over }) => !outcome && !over

/** @type {(item: Props) => boolean} whether an item, or one within it, waits for a person */
export const waits = item =>
	(item.permissions ?? (item.kind === 'question' ? [item] : [])).some(isOpen) || (item.items ?? []).some(waits)

/** @type {(item: Props) => boolean} what a person sees even if it is folded */
export const isUrgent = item =>
	item.status === 'failed' || item.note === 'error' || waits(item) || (item.items ?? []).some(isUrgent)

/** @type {(subagent: Props) => any} the call on which a subagent works */
export const nowOf = ({ items }) => items.findLast(one => one.kind === 'tool' && !one.endedAt && !one.abandoned)

const ATTACHED = '[Attached files]\n'

export function promptText(prompt) {
	const { text, files } = promptParts(prompt)
	return files.length ? `${ATTACHED}${files.join('\n')}\n${text}` : text
}

// The server put the paths of uploads before the text
export function promptParts(prompt) {
	const all = blocks(prompt)
	const files = []
	let text = textOf(all)
	if (text.startsWith(ATTACHED)) {
		const lines = text.slice(ATTACHED.length).split('\n')
		const folder = lines[0].split('/').slice(0, -2).join('/')
		while (folder && lines[0]?.startsWith(folder)) files.push(lines.shift())
		text = lines.join('\n')
	}
	return { text, files, others: all.filter(({ type }) => type !== 'text') }
}

function detailOf(data) {
	return string(typeof data === 'string' ? data : (record(data).details ?? record(data).message))
}

function hide(object, fields) {
	for (const [name, value] of Object.entries(fields)) Object.defineProperty(object, name, { value, writable: true })
	return object
}
