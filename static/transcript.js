/**
 * transcript.js: from log entries to what there is to show. `reduce(model, entry)`
 * takes a session's entries in order, and changes the model in place at the same
 * cost for each. What changed it leaves in `model.dirty`, for a view to take. No
 * clock, no dice, no DOM.
 *
 *   turns[]  {index, prompt, id, context, status, stopReason, durationMs, error, usage, plan, items[]}
 *     withdrawn: it was cancelled before the agent got it
 *     failure: what the agent told beyond the error's message; null if it answered no error
 *   items[]  kind 'message', 'thought', 'user': parts[], done
 *     kind 'tool': id, title, toolKind, status, content, locations, input, output, terminal, permission
 *     kind 'plan': entries[]; 'note': a small fact; 'raw': what is not known here, as it came
 *   waiting  request_id -> the tool item that waits for the user's permission
 *   running  indices of the turns that have not ended
 *   modes, models, configOptions, commands, usage, title, closed
 */
const MAX_RAW = 200; // kept of one run of unknown updates; more are only counted

export function createTranscript() {
	const model = { kind: 'session', head: 0, turns: [], running: new Set(), waiting: new Map(), modes: null, models: null, configOptions: null, commands: null, usage: null, title: null, closed: null };
	return hide(model, { dirty: new Set(), byIndex: new Map(), tools: new Map(), requests: new Map(), seededAt: 0 });
}

/** `ready` and GET /sessions/{id} know the present settings: they win over the log up to their head. */
export function seed(model, { head = 0, modes, models, config_options: configOptions, commands, usage }) {
	model.seededAt = Math.max(model.seededAt, head);
	for (const [name, value] of Object.entries({ modes, models, configOptions, commands, usage })) if (value) set(model, name, value);
}

export function reduce(model, entry) {
	const handler = ENTRIES[entry.type];
	model.head = entry.seq;
	if (handler) handler(model, entry);
	else addRaw(model, entry, entry.type, entry);
	return model;
}

const ENTRIES = {
	turn_start(model, entry) {
		const { prompt, id = null, context = 'kept', ts } = entry;
		const turn = turnOf(model, entry);
		Object.assign(turn, { prompt: typeof prompt === 'string' ? [{ type: 'text', text: prompt }] : list(prompt), id, context, startedAt: ts, status: 'running' });
		model.running.add(turn.index);
	},

	turn_end(model, entry) {
		const turn = turnOf(model, entry);
		closeText(model, turn, entry.ts);
		Object.assign(turn, { status: 'ended', stopReason: entry.stop_reason, durationMs: entry.duration_ms, error: entry.error ?? null });
		// A turn whose agent never had it took no time.
		if (entry.withdrawn ?? (entry.stop_reason === 'cancelled' && entry.duration_ms === 0 && !turn.items.length)) turn.withdrawn = true;
		for (const tool of turn.open) {
			tool.abandoned = true;
			model.dirty.add(tool);
		}
		turn.open.clear();
		model.running.delete(turn.index);
	},

	event(model, entry) {
		const { method, params, result, error } = entry.event ?? {};
		const update = method === 'session/update' ? (params?.update ?? {}) : {};
		if (Object.hasOwn(UPDATES, update.sessionUpdate)) UPDATES[update.sessionUpdate](model, update, entry);
		else if (method) addRaw(model, entry, update.sessionUpdate ?? method, update.sessionUpdate ? update : params);
		else if (result?.usage) turnOf(model, entry).usage = result.usage;
		else if (error) turnOf(model, entry).failure = detailOf(error.data);
	},

	permission_request(model, entry) {
		const { request_id: requestId, request, expires_at: expiresAt = null } = entry;
		const tool = mergeTool(model, { toolCallId: `permission:${requestId}`, ...request?.toolCall }, entry, true);
		tool.permission = { requestId, options: list(request?.options), expiresAt, outcome: null, by: null };
		model.requests.set(requestId, tool);
		model.waiting.set(requestId, tool);
	},

	permission_resolved(model, { request_id: requestId, outcome, by }) {
		const tool = model.requests.get(requestId);
		model.requests.delete(requestId);
		model.waiting.delete(requestId);
		if (tool?.permission.requestId !== requestId) return;
		Object.assign(tool.permission, { outcome: outcome ?? {}, by });
		model.dirty.add(tool);
	},

	session_closed: (model, { reason }) => set(model, 'closed', { reason }),
};

/** By the `sessionUpdate` of ACP. */
const UPDATES = {
	agent_message_chunk: (model, update, entry) => addText(model, 'message', update, entry),
	agent_thought_chunk: (model, update, entry) => addText(model, 'thought', update, entry),
	user_message_chunk(model, update, entry) {
		// Some agents echo the prompt, which is on the screen already.
		const { text } = update.content ?? {};
		if (!text || !textOf(turnOf(model, entry).prompt).includes(text)) addText(model, 'user', update, entry);
	},
	tool_call: (model, update, entry) => mergeTool(model, update, entry, true),
	tool_call_update: (model, update, entry) => mergeTool(model, update, entry),
	plan(model, { entries }, entry) {
		const turn = turnOf(model, entry);
		turn.plan ??= add(model, entry, 'plan', {});
		turn.plan.entries = list(entries);
		model.dirty.add(turn.plan);
	},
	available_commands_update: (model, update, entry) => set(model, 'commands', list(update.availableCommands), entry),
	config_option_update: (model, update, entry) => set(model, 'configOptions', list(update.configOptions), entry),
	current_mode_update(model, { currentModeId }, entry) {
		const modes = model.modes ?? { currentModeId: null, availableModes: [] };
		if (entry.seq > model.seededAt && modes.currentModeId !== currentModeId) {
			const name = list(modes.availableModes).find(({ id }) => id === currentModeId)?.name ?? currentModeId;
			add(model, entry, 'note', { note: 'mode', title: `Mode is now ${name}`, text: '' });
		}
		set(model, 'modes', { ...modes, currentModeId }, entry);
	},
	session_info_update: (model, { title }, entry) => title !== undefined && set(model, 'title', title, entry),
	usage_update: (model, { used, size, cost = null }) => set(model, 'usage', { used, size, cost }),
	notice: (model, { severity, title, description }, entry) => add(model, entry, 'note', { note: severity, title, text: description ?? '' }),
};

// ---- turns and items

function turnOf(model, { turn_index: index = 0, ts }) {
	let turn = model.byIndex.get(index);
	if (!turn) {
		turn = { kind: 'turn', index, prompt: null, id: null, context: 'kept', status: 'ended', startedAt: ts, stopReason: null, durationMs: null, error: null, failure: null, usage: null, plan: null, items: [] };
		hide(turn, { open: new Set(), text: null }); // tool calls that still run; the text that still grows
		model.byIndex.set(index, turn);
		model.turns.push(turn);
	}
	model.dirty.add(turn);
	return turn;
}

function add(model, entry, kind, fields) {
	const turn = turnOf(model, entry);
	closeText(model, turn, entry.ts);
	const item = { kind, turnIndex: turn.index, startedAt: entry.ts, ...fields };
	turn.items.push(item);
	model.dirty.add(item);
	return item;
}

function addText(model, kind, { content = {}, messageId = null }, entry) {
	const turn = turnOf(model, entry);
	let item = turn.text;
	if (item?.kind !== kind || item.messageId !== messageId) {
		item = add(model, entry, kind, { messageId, parts: [] });
		turn.text = item;
	}
	const last = item.parts.at(-1);
	if (content.type === 'text' && last?.type === 'text') last.text += content.text ?? '';
	else item.parts.push(content.type === 'text' ? { type: 'text', text: content.text ?? '' } : content);
	item.endedAt = entry.ts;
	item.done = turn.stopReason !== null;
	model.dirty.add(item);
}

function closeText(model, turn, ts) {
	if (!turn.text) return;
	Object.assign(turn.text, { done: true, endedAt: ts });
	model.dirty.add(turn.text);
	turn.text = null;
}

function addRaw(model, entry, name, data) {
	const last = turnOf(model, entry).items.at(-1);
	if (last?.kind !== 'raw' || last.name !== name) return void add(model, entry, 'raw', { name, count: 1, data: [data] });
	last.count += 1;
	if (last.count <= MAX_RAW) last.data.push(data);
	model.dirty.add(last);
}

function mergeTool(model, update, entry, announced = false) {
	const { toolCallId: id, title, kind, status, content, locations, rawInput, rawOutput, _meta: meta } = update;
	const turn = turnOf(model, entry);
	let tool = model.tools.get(id);
	// An id that a later turn announces again is another call.
	if (!tool || (announced && tool.turnIndex !== turn.index)) {
		tool = add(model, entry, 'tool', { id, title: '', toolKind: 'other', status: 'pending', content: [], locations: [], input: undefined, output: undefined, terminal: null, permission: null, abandoned: false, endedAt: null });
		model.tools.set(id, tool);
	}
	// Absent and null mean unchanged; lists are replaced whole.
	const fields = { title, toolKind: kind, status, content: content && list(content), locations: locations && list(locations), input: rawInput, output: rawOutput };
	for (const name in fields) if (fields[name] != null) tool[name] = fields[name];
	const ended = tool.status === 'completed' || tool.status === 'failed';
	tool.endedAt = ended ? (tool.endedAt ?? entry.ts) : null;
	if (ended) turn.open.delete(tool);
	else if (turn.status === 'running') turn.open.add(tool);
	else tool.abandoned = true;
	// Agents whose client has no terminal stream a command's output here.
	if (meta?.terminal_output || meta?.terminal_exit) {
		tool.terminal ??= { output: '', exit: null };
		tool.terminal.output += meta.terminal_output?.data ?? '';
		tool.terminal.exit = meta.terminal_exit?.exit_code ?? tool.terminal.exit;
	}
	model.dirty.add(tool);
	return tool;
}

function set(model, name, value, entry) {
	if (entry?.seq <= model.seededAt && model[name]) return;
	model[name] = value;
	model.dirty.add(model);
}

// ---- shared with views

export function textOf(blocks) {
	return list(blocks).map((block) => block?.text ?? '').join('');
}

const ATTACHED = '[Attached files]\n';

/** A prompt as text that can be sent once more: the server's list of its files stays in it. */
export function promptText(prompt) {
	const { text, files } = promptParts(prompt);
	return files.length ? `${ATTACHED}${files.join('\n')}\n${text}` : text;
}

/** A prompt (text or blocks) as its author saw it: the server put the paths of uploads before its text. */
export function promptParts(prompt) {
	const blocks = typeof prompt === 'string' ? [{ type: 'text', text: prompt }] : list(prompt);
	const isText = (block) => block?.type === 'text';
	const files = [];
	let text = textOf(blocks.filter(isText));
	if (text.startsWith(ATTACHED)) {
		const lines = text.slice(ATTACHED.length).split('\n');
		// All uploads lie in one folder, each in its own; a prompt may begin with "/", too.
		const folder = lines[0].split('/').slice(0, -2).join('/');
		while (folder && lines[0]?.startsWith(folder)) files.push(lines.shift());
		text = lines.join('\n');
	}
	return { text, files, others: blocks.filter((block) => !isText(block)) };
}

function detailOf(data) {
	const text = typeof data === 'string' ? data : (data?.details ?? data?.message);
	return typeof text === 'string' ? text : '';
}

function list(value) {
	return Array.isArray(value) ? value : [];
}

/** Bookkeeping that is no part of what one sees. */
function hide(object, fields) {
	for (const [name, value] of Object.entries(fields)) Object.defineProperty(object, name, { value, writable: true });
	return object;
}
