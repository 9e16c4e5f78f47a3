// Log entries as no agent should send them: every field of every kind of entry, in every wrong type.
// Used by Node for the reducer, and by Chromium for what is drawn.

const text = words => ({ type: 'text', text: words });
const call = {
	toolCallId: 't1',
	title: 'Edit a.py',
	kind: 'edit',
	status: 'completed',
	content: [
		{ type: 'content', content: text('done') },
		{ type: 'diff', path: '/a.py', oldText: 'a', newText: 'b' },
		{ type: 'terminal', terminalId: 'x' }
	],
	locations: [{ path: '/a.py', line: 3 }],
	rawInput: { command: 'make', description: 'build' },
	rawOutput: { stdout: 'ok', stderr: '' },
	_meta: { terminal_output: { data: 'out' }, terminal_exit: { exit_code: 1 } }
};
const blocks = [
	text('hello'),
	{ type: 'image', mimeType: 'image/png', data: 'AA==', uri: '/x.png' },
	{ type: 'audio', mimeType: 'audio/wav', data: 'AA==' },
	{ type: 'resource_link', uri: 'file:///a', name: 'a', title: 'A', size: 7, mimeType: 'text/plain' },
	{ type: 'resource', resource: { uri: 'file:///b.py', text: 'x = 1', mimeType: 'text/x-python' } }
];
const choices = [
	{ optionId: 'y', name: 'Yes', kind: 'allow_once' },
	{ optionId: 'n', name: 'No', kind: 'reject_once' }
];

/** By the kind of update: what a well-behaved agent sends. */
export const UPDATES = {
	agent_message_chunk: { content: text('hi'), messageId: 'm' },
	agent_thought_chunk: { content: text('hm') },
	user_message_chunk: { content: text('you') },
	...Object.fromEntries(blocks.map(content => [`agent_message_chunk ${content.type}`, { content }])),
	tool_call: call,
	tool_call_update: { toolCallId: 't1', title: 'Edit', status: 'failed' },
	'tool_call execute': {
		toolCallId: 't2',
		kind: 'execute',
		title: 'make',
		rawInput: { command: 'make' },
		rawOutput: 'ok',
		content: [{ type: 'content', content: text('```sh\nx\n```') }]
	},
	plan: {
		entries: [
			{ content: 'one', priority: 'low', status: 'pending' },
			{ content: 'two', priority: 'low', status: 'completed' }
		]
	},
	available_commands_update: { availableCommands: [{ name: 'help', description: 'h', input: { hint: 'words' } }] },
	config_option_update: {
		configOptions: [
			{
				id: 'a',
				name: 'A',
				type: 'select',
				category: 'mode',
				currentValue: 'x',
				options: [
					{ value: 'x', name: 'X', description: 'd' },
					{ name: 'group', options: [{ value: 'y', name: 'Y' }] }
				]
			},
			{ id: 'b', name: 'B', type: 'boolean', currentValue: true }
		]
	},
	current_mode_update: { currentModeId: 'code' },
	session_info_update: { title: 'a title', updatedAt: 'now' },
	usage_update: { used: 10, size: 100, cost: { amount: 0.5, currency: 'USD' } },
	notice: { severity: 'warning', title: 'careful', description: 'really' },
	compaction_update: { compactionId: 'k', status: 'failed', summary: [text('so far')], error: 'no room' },
	compaction_summary_chunk: { compactionId: 'k', content: text('more') },
	subagent_update: {
		sessionId: 'child',
		title: 'Look',
		description: 'reader',
		state: { state: 'idle', stopReason: 'error', error: { message: 'oh' } }
	},
	session_message: { messageId: 'm', senderSessionId: 's', recipientSessionId: 'child', content: [text('look')] },
	session_message_chunk: { messageId: 'm', content: text('closely') },
	from_the_future: { x: [1] }
};

const updates = Object.entries(UPDATES).map(([name, update]) => [
	name,
	{
		type: 'event',
		event: {
			jsonrpc: '2.0',
			method: 'session/update',
			params: { sessionId: 's', update: { sessionUpdate: name.split(' ')[0], ...update } }
		}
	}
]);

/** By name: an entry of every kind. */
export const ENTRIES = Object.fromEntries([
	...updates,
	[
		'event of a subagent',
		{
			type: 'event',
			subagent: { session_id: 'child', tool_call_id: 't1' },
			event: { method: 'session/update', params: { update: { sessionUpdate: 'tool_call', ...call, toolCallId: 't3' } } }
		}
	],
	['turn_start', { type: 'turn_start', prompt: blocks, id: 'c1', context: 'lost' }],
	[
		'turn_end',
		{
			type: 'turn_end',
			stop_reason: 'error',
			duration_ms: 5,
			error: { code: 'agent_failed', message: 'oh', retryable: true }
		}
	],
	['turn_end limit', { type: 'turn_end', stop_reason: 'max_tokens', duration_ms: 5, error: null }],
	[
		'response',
		{ type: 'event', event: { jsonrpc: '2.0', id: 1, result: { stopReason: 'end_turn', usage: { totalTokens: 9 } } } }
	],
	[
		'failure',
		{
			type: 'event',
			event: {
				jsonrpc: '2.0',
				id: 1,
				error: { code: -32603, message: 'Internal error', data: { details: 'no quota' } }
			}
		}
	],
	['extension', { type: 'event', event: { jsonrpc: '2.0', method: '_vendor/ping', params: { x: 1 } } }],
	[
		'permission_request',
		{
			type: 'permission_request',
			request_id: 'r1',
			request: {
				sessionId: 's',
				toolCall: {
					toolCallId: 't1',
					title: 'Edit',
					kind: 'edit',
					content: [call.content[1]],
					locations: call.locations,
					rawInput: { path: '/a.py' }
				},
				options: choices
			},
			expires_at: 1
		}
	],
	[
		'permission_request command',
		{
			type: 'permission_request',
			request_id: 'r2',
			request: {
				toolCall: { toolCallId: 't9', kind: 'execute', rawInput: { command: ['make', 'all'] } },
				options: [choices[0]]
			}
		}
	],
	[
		'permission_resolved',
		{ type: 'permission_resolved', request_id: 'r1', outcome: { outcome: 'selected', optionId: 'y' }, by: 'client' }
	],
	[
		'elicitation_request link',
		{
			type: 'elicitation_request',
			request_id: 'e2',
			request: { mode: 'url', message: 'Go', url: 'https://example.com/', elicitationId: 'l1' }
		}
	],
	[
		'elicitation_request',
		{
			type: 'elicitation_request',
			request_id: 'e1',
			request: {
				mode: 'form',
				message: 'Name?',
				requestedSchema: {
					type: 'object',
					required: ['name'],
					properties: {
						name: { type: 'string', title: 'Name', description: 'd', minLength: 1, maxLength: 9, default: 'x' },
						size: { type: 'string', oneOf: [{ const: 's', title: 'Small', description: 'd' }] },
						parts: { type: 'array', minItems: 1, items: { enum: ['a', 'b'] }, default: ['a'] },
						count: { type: 'integer', minimum: 1, default: 2 },
						when: { type: 'string', format: 'date-time' },
						sure: { type: 'boolean', default: true }
					}
				}
			},
			expires_at: 1
		}
	],
	[
		'elicitation_resolved',
		{
			type: 'elicitation_resolved',
			request_id: 'e1',
			outcome: { action: 'accept', content: { name: 'x' } },
			by: 'client'
		}
	]
]);

/** What a session's state, and `ready`, tell of the answer to session/new. */
export const SETTINGS = {
	modes: {
		currentModeId: 'ask',
		availableModes: [
			{ id: 'ask', name: 'Ask', description: 'asks' },
			{ id: 'code', name: 'Code' }
		]
	},
	models: { currentModelId: 'm1', availableModels: [{ modelId: 'm1', name: 'One', description: 'first' }] },
	config_options: UPDATES.config_option_update.configOptions,
	commands: UPDATES.available_commands_update.availableCommands,
	usage: { used: 10, size: 100, cost: { amount: 1, currency: 'EUR' } },
	meta: { title: 'named' },
	queued: []
};

export const MISSING = Symbol('missing');
const prototypes = JSON.parse('{"__proto__": {"x": 1}, "constructor": 5, "toString": null, "length": -1}');
/** Null, a number, a text and unknown name, a list, an object, nothing. */
export const VALUES = [null, 7, 'constructor', [null, 7, 'x', [], {}], prototypes, MISSING];
/** @type {any} */
let deep = 'x';
for (let depth = 0; depth < 900; depth += 1) deep = depth % 2 ? [deep] : { a: deep };
export const MORE_VALUES = [
	...VALUES,
	'text',
	[],
	{},
	true,
	'',
	-1,
	1e308,
	// biome-ignore lint/correctness/noPrecisionLoss: beyond the safe integers
	9007199254740993,
	-0,
	'__proto__',
	'\ud800x',
	'\u202e\u0000\u200b',
	'x'.repeat(100_000),
	'a\n'.repeat(5000),
	Array(2000).fill(null),
	deep
];

/** Every place in a value, as a list of keys. */
function* paths(value, at = []) {
	if (at.length) yield at;
	if (typeof value !== 'object' || value === null) return;
	for (const key of Object.keys(value)) yield* paths(value[key], [...at, key]);
}

function put(value, path, other) {
	const [key, ...rest] = path;
	if (typeof value !== 'object' || value === null) return value; // has been replaced
	const copy = Array.isArray(value) ? [...value] : { ...value };
	if (rest.length) copy[key] = put(value[key], rest, other);
	else if (other === MISSING && Array.isArray(copy)) copy.splice(key, 1);
	else if (other === MISSING) delete copy[key];
	else copy[key] = other;
	return copy;
}

/** Copies of `value`, in each of which one thing is another than it should be. */
export function* broken(value, values = VALUES) {
	for (const path of paths(value)) for (const other of values) yield put(value, path, other);
}

/** Turns of entries in which several things at random places are of random types; the same for the same seed. */
export function* randomTurns(seed, turns = 12, each = 40) {
	let state = seed % 2147483647 || 1;
	const next = below => (state = (state * 48271) % 2147483647) % below;
	const any = all => all[next(all.length)];
	const entries = Object.values(ENTRIES).map(entry => [entry, [...paths(entry)]]);
	for (let turn_index = 1; turn_index <= turns; turn_index += 1) {
		const at = { ts: 1_700_000_000_000 + turn_index, turn_index };
		yield { ...at, type: 'turn_start', prompt: [text('go')], id: null };
		for (let count = 0; count < each; count += 1) {
			let [entry, places] = any(entries);
			for (let changes = next(4); changes >= 0; changes -= 1) entry = put(entry, any(places), any(MORE_VALUES));
			yield { ...at, ...entry, request_id: `${turn_index}-${count}` };
		}
		yield {
			...at,
			type: 'event',
			event: {
				method: 'session/update',
				params: {
					update: {
						sessionUpdate: 'agent_message_chunk',
						messageId: `after ${turn_index}`,
						content: text(`good ${turn_index}.`)
					}
				}
			}
		};
		yield { ...at, type: 'turn_end', stop_reason: 'end_turn', duration_ms: 1, error: null };
	}
}

/** Entries by turns, one for each name: the turn begins, all broken ones come, a good message, the end. */
export function* hostileTurns(values = VALUES) {
	let turn = 0;
	let request = 0;
	for (const [name, entry] of Object.entries(ENTRIES)) {
		const turn_index = (turn += 1);
		const at = { ts: 1_700_000_000_000 + turn, turn_index };
		yield { ...at, type: 'turn_start', prompt: [text(`prompt ${turn}`)], id: null, context: 'kept' };
		for (const one of broken(entry, values)) {
			const own =
				['permission_request', 'elicitation_request'].includes(one.type) && typeof one.request_id === 'string'
					? { request_id: `${one.request_id}-${(request += 1)}` }
					: {};
			yield { ...at, ...one, ...own };
		}
		yield {
			...at,
			type: 'event',
			event: {
				method: 'session/update',
				params: {
					update: { sessionUpdate: 'agent_message_chunk', messageId: `after ${name}`, content: text(`good ${turn}.`) }
				}
			}
		};
		yield { ...at, type: 'turn_end', stop_reason: 'end_turn', duration_ms: 1, error: null };
	}
}
