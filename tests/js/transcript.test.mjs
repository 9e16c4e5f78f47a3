// The reducer: golden logs of a real server with the demo agent, and single rules.
//
// UPDATE_GOLDEN=1 node --test tests/js/   rewrites the expected models; check the difference.
import assert from 'node:assert/strict';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import {
	answerOf,
	changedPaths,
	changesFiles,
	createTranscript,
	isUrgent,
	nowOf,
	promptParts,
	reduce,
	seed,
	textOf,
	waits
} from '../../static/transcript.js';

const GOLDEN = new URL('./golden/', import.meta.url);
const read = name => readFileSync(new URL(name, GOLDEN), 'utf8');

/** A model as plain JSON: Sets and Maps as lists, what waits by the id of its tool. */
function plain(model) {
	const shown = {
		...model,
		running: [...model.running],
		waiting: [...model.waiting.keys()],
		turns: model.turns.map(turn => ({ ...turn, plan: turn.plan && turn.items.indexOf(turn.plan) }))
	};
	return JSON.parse(JSON.stringify(shown));
}

for (const name of readdirSync(GOLDEN).filter(file => file.endsWith('.jsonl'))) {
	const entries = read(name)
		.trim()
		.split('\n')
		.map(line => JSON.parse(line));
	const expected = name.replace('.jsonl', '.model.json');

	test(`golden: ${name}`, () => {
		const model = plain(entries.reduce(reduce, createTranscript()));
		if (process.env.UPDATE_GOLDEN) writeFileSync(new URL(expected, GOLDEN), `${JSON.stringify(model, null, '\t')}\n`);
		assert.deepEqual(model, JSON.parse(read(expected)));
	});

	test(`golden: ${name} gives the same model twice and changes no entry`, () => {
		const before = JSON.stringify(entries);
		const [one, two] = [1, 2].map(() => plain(entries.reduce(reduce, createTranscript())));
		assert.deepEqual(one, two);
		assert.equal(JSON.stringify(entries), before);
	});
}

/** A log that numbers itself. */
function log() {
	const model = createTranscript();
	let seq = 0;
	const put = (type, fields = {}) => reduce(model, { type, seq: (seq += 1), ts: seq * 1000, turn_index: 1, ...fields });
	return {
		model,
		put,
		start: fields => put('turn_start', { prompt: [{ type: 'text', text: 'hi' }], id: 'c1', context: 'new', ...fields }),
		end: fields => put('turn_end', { stop_reason: 'end_turn', duration_ms: 1, error: null, ...fields }),
		update: (sessionUpdate, update, fields) =>
			put('event', {
				event: { jsonrpc: '2.0', method: 'session/update', params: { update: { sessionUpdate, ...update } } },
				...fields
			}),
		say: (text, more, fields) =>
			put('event', {
				event: {
					method: 'session/update',
					params: { update: { sessionUpdate: 'agent_message_chunk', content: { type: 'text', text }, ...more } }
				},
				...fields
			}),
		get items() {
			return model.turns.at(-1).items;
		}
	};
}

test('chunks of one message become one message; another kind, or another id, begins a new one', () => {
	const l = log();
	l.start();
	l.say('a');
	l.say('b');
	l.update('agent_thought_chunk', { content: { type: 'text', text: 'hm' } });
	l.say('c');
	l.say('d', { messageId: 'm2' });
	assert.deepEqual(
		l.items.map(({ kind, parts, done }) => [kind, textOf(parts), done]),
		[
			['message', 'ab', true],
			['thought', 'hm', true],
			['message', 'c', true],
			['message', 'd', false]
		]
	);
	l.end();
	assert.equal(l.items.at(-1).done, true);
});

test('error details of an agent are kept in any shape', () => {
	for (const [data, kept] of [
		[{ details: 'no quota' }, 'no quota'],
		['no quota', 'no quota'],
		[{ message: 'm' }, 'm'],
		[{ details: { a: 1 } }, ''],
		[undefined, '']
	]) {
		const l = log();
		l.start();
		assert.equal(l.model.turns[0].failure, null);
		l.put('event', { event: { id: 1, error: { code: -32603, message: 'Internal error', data } } });
		assert.equal(l.model.turns[0].failure, kept);
	}
});

test('a content block that is not text is a separate part', () => {
	const l = log();
	l.start();
	l.say('before');
	l.update('agent_message_chunk', { content: { type: 'image', mimeType: 'image/png', data: 'AA==' } });
	l.say('after');
	assert.deepEqual(
		l.items[0].parts.map(({ type }) => type),
		['text', 'image', 'text']
	);
});

test('updates of a tool call are merged: absent and null mean unchanged, lists are replaced', () => {
	const l = log();
	l.start();
	l.update('tool_call', {
		toolCallId: 't',
		title: 'Read',
		kind: 'read',
		locations: [{ path: '/a' }],
		content: [{ type: 'content', content: { type: 'text', text: 'x' } }]
	});
	l.update('tool_call_update', { toolCallId: 't', title: null, status: 'in_progress', content: [] });
	l.update('tool_call_update', { toolCallId: 't', status: 'completed', rawOutput: 'x' });
	const [tool] = l.items;
	assert.equal(l.items.length, 1);
	assert.deepEqual(
		[tool.title, tool.toolKind, tool.status, tool.content, tool.locations, tool.output, tool.endedAt],
		['Read', 'read', 'completed', [], [{ path: '/a' }], 'x', 4000]
	);
});

test('an update for an unannounced call shows the call', () => {
	const l = log();
	l.start();
	l.update('tool_call_update', { toolCallId: 'x', title: 'Surprise' });
	assert.equal(l.items[0].title, 'Surprise');
});

test('an id announced again in a later turn is another call', () => {
	const l = log();
	l.start();
	l.update('tool_call', { toolCallId: 't', title: 'one' });
	l.end();
	l.start({ turn_index: 2 });
	l.update('tool_call', { toolCallId: 't', title: 'two' }, { turn_index: 2 });
	assert.deepEqual(
		l.model.turns.map(({ items }) => items[0].title),
		['one', 'two']
	);
});

test('a call in progress at the end of its turn is abandoned', () => {
	const l = log();
	l.start();
	l.update('tool_call', { toolCallId: 't', title: 'sleep', status: 'in_progress' });
	l.end({ stop_reason: 'cancelled' });
	assert.equal(l.items[0].abandoned, true);
});

test('terminal output in _meta is joined', () => {
	const l = log();
	l.start();
	for (const data of ['a\n', 'b\n'])
		l.update('tool_call_update', { toolCallId: 't', _meta: { terminal_output: { data } } });
	l.update('tool_call_update', { toolCallId: 't', _meta: { terminal_exit: { exit_code: 3 } } });
	assert.deepEqual(l.items[0].terminal, { output: 'a\nb\n', exit: 3 });
});

test('a permission lives on its tool call, and waits until it is resolved', () => {
	const l = log();
	l.start();
	l.update('tool_call', { toolCallId: 't', title: 'Edit' });
	l.put('permission_request', {
		request_id: 'r',
		request: { toolCall: { toolCallId: 't' }, options: [{ optionId: 'y', name: 'Yes' }] }
	});
	assert.equal(l.items.length, 1);
	assert.equal(l.model.waiting.get('r').tool, l.items[0]);
	l.put('permission_resolved', { request_id: 'r', outcome: { outcome: 'selected', optionId: 'y' }, by: 'client' });
	assert.equal(l.model.waiting.size, 0);
	assert.deepEqual(
		l.items[0].permissions.map(({ outcome, by }) => [outcome.optionId, by]),
		[['y', 'client']]
	);
});

test('a permission request creates a missing call', () => {
	const l = log();
	l.start();
	l.put('permission_request', {
		request_id: 'r1',
		request: { toolCall: { toolCallId: 'n', title: 'New' }, options: [] }
	});
	l.put('permission_request', { request_id: 'r2', request: {} });
	assert.deepEqual(
		l.items.map(({ id, title }) => [id, title]),
		[
			['n', 'New'],
			['permission:r2', '']
		]
	);
});

test('a permission request with an id of an earlier turn belongs to its own turn', () => {
	const l = log();
	l.start();
	l.update('tool_call', { toolCallId: 't', title: 'one', status: 'completed' });
	l.end();
	l.start({ turn_index: 2 });
	l.put('permission_request', {
		request_id: 'r',
		turn_index: 2,
		request: { toolCall: { toolCallId: 't', title: 'two' }, options: [] }
	});
	assert.deepEqual(
		l.model.turns.map(({ items }) => items.map(({ title, permissions }) => [title, permissions[0]?.requestId])),
		[[['one', undefined]], [['two', 'r']]]
	);
});

test('two requests for one call wait independently with their own content', () => {
	const l = log();
	l.start();
	l.update('tool_call', { toolCallId: 't', title: 'Shell', kind: 'execute' });
	const ask = (request_id, command) =>
		l.put('permission_request', {
			request_id,
			request: { toolCall: { toolCallId: 't', rawInput: { command } }, options: [{ optionId: 'y', name: 'Yes' }] }
		});
	ask('r1', 'ls');
	ask('r2', 'rm -rf /');
	l.update('tool_call_update', { toolCallId: 't', title: 'harmless', rawInput: { command: 'true' } });
	const [tool] = l.items;
	assert.deepEqual(
		tool.permissions.map(({ requestId, call }) => [requestId, call.title, call.input.command]),
		[
			['r1', 'Shell', 'ls'],
			['r2', 'Shell', 'rm -rf /']
		]
	);
	l.put('permission_resolved', { request_id: 'r1', outcome: {}, by: 'timeout' });
	assert.deepEqual(
		[tool.permissions.map(({ outcome }) => outcome !== null), [...l.model.waiting.keys()]],
		[[true, false], ['r2']]
	);
	l.put('permission_resolved', { request_id: 'r2', outcome: { optionId: 'y' }, by: 'client' });
	l.put('permission_resolved', { request_id: 'r2', outcome: { optionId: 'n' }, by: 'timeout' });
	assert.deepEqual([tool.permissions[1].outcome.optionId, l.model.waiting.size], ['y', 0]);
});

test('a request ends with its turn; one after the end of the turn waits', () => {
	const l = log();
	l.start();
	const ask = request_id => l.put('permission_request', { request_id, request: { options: [{ optionId: 'y' }] } });
	ask('r1');
	l.end();
	assert.deepEqual([l.items[0].permissions[0].over, l.model.waiting.size], [true, 0]);
	ask('r2');
	assert.deepEqual([...l.model.waiting.keys()], ['r2']);
});

test('an id identifies one call within its turn', () => {
	const kinds = {
		tool_call: (l, id) => l.update('tool_call', { toolCallId: id, title: 'two' }, { turn_index: 2 }),
		tool_call_update: (l, id) => l.update('tool_call_update', { toolCallId: id, title: 'two' }, { turn_index: 2 }),
		permission: (l, id) =>
			l.put('permission_request', {
				turn_index: 2,
				request_id: 'r',
				request: { toolCall: { toolCallId: id, title: 'two' } }
			})
	};
	for (const [name, again] of Object.entries(kinds)) {
		for (const id of ['t', '__proto__', 7]) {
			const l = log();
			l.start();
			l.update('tool_call', { toolCallId: id, title: 'one', status: 'completed' });
			l.end();
			l.start({ turn_index: 2 });
			again(l, id);
			assert.deepEqual(
				l.model.turns.map(({ items }) => items.map(({ title }) => title)),
				[['one'], ['two']],
				name
			);
		}
	}
});

test('a continued call of an earlier turn keeps its title', () => {
	const l = log();
	l.start();
	l.update('tool_call', { toolCallId: 't', title: 'make test', kind: 'execute' });
	l.end();
	l.start({ turn_index: 2 });
	l.update('tool_call_update', { toolCallId: 't', status: 'completed' }, { turn_index: 2 });
	assert.deepEqual(
		l.model.turns.map(({ items: [tool] }) => [tool.title, tool.toolKind, tool.status]),
		[
			['make test', 'execute', 'pending'],
			['make test', 'execute', 'completed']
		]
	);
});

test('entries of two turns may interleave', () => {
	const l = log();
	l.start();
	l.say('one');
	l.start({ turn_index: 2 });
	l.end({ turn_index: 2, stop_reason: 'cancelled' });
	l.say(' more');
	assert.equal(textOf(l.model.turns[0].items[0].parts), 'one more');
	assert.deepEqual([...l.model.running], [1]);
});

test('an update after the end belongs to the preceding turn and is complete', () => {
	const l = log();
	l.start();
	l.end();
	l.say('late');
	assert.deepEqual([l.items[0].done, l.model.turns.length, l.model.running.size], [true, 1, 0]);
});

test('an update outside any turn gets a turn without a prompt', () => {
	const l = log();
	l.say('hello', {}, { turn_index: undefined });
	assert.deepEqual([l.model.turns[0].index, l.model.turns[0].prompt], [0, null]);
});

test('a plan updates in place; the next turn begins a new one', () => {
	const l = log();
	const plan = (status, fields) => l.update('plan', { entries: [{ content: 'x', status }] }, fields);
	l.start();
	plan('pending');
	l.say('text between');
	plan('completed');
	assert.deepEqual(
		l.items.map(({ kind }) => kind),
		['plan', 'message']
	);
	assert.equal(l.items[0].entries[0].status, 'completed');
	l.end();
	l.start({ turn_index: 2 });
	plan('pending', { turn_index: 2 });
	assert.equal(l.model.turns[0].items[0].entries[0].status, 'completed');
	assert.equal(l.model.turns[1].plan.entries[0].status, 'pending');
});

test('unknown kinds, methods and entries are shown raw; repeats are counted', () => {
	const l = log();
	l.start();
	for (let n = 0; n < 250; n += 1) l.update('from_the_future', { n });
	l.put('event', { event: { jsonrpc: '2.0', method: '_vendor/ping', params: { x: 1 } } });
	l.put('weather', { sunny: true });
	l.update('constructor', {}); // a name that every object has
	assert.deepEqual(
		l.items.map(({ kind, name, count, data }) => [kind, name, count, data.length]),
		[
			['raw', 'from_the_future', 250, 200],
			['raw', '_vendor/ping', 1, 1],
			['raw', 'weather', 1, 1],
			['raw', 'constructor', 1, 1]
		]
	);
});

test('no entry of the server is shown raw', () => {
	const frames = read('../../golden/down.ndjson')
		.trim()
		.split('\n')
		.map(line => JSON.parse(line));
	const entries = frames.filter(({ seq, type }) => seq !== undefined && type !== 'event');
	assert.ok(entries.some(({ type }) => type === 'notice'));
	const model = entries.reduce(reduce, createTranscript());
	const raw = model.turns.flatMap(({ items }) => items).filter(({ kind }) => kind === 'raw');
	assert.deepEqual(raw, []);
});

test('a restored setting is a note, and a notice about asking is not an item', () => {
	const l = log();
	l.start();
	l.put('notice', { notice: 'restored', setting: 'mode', value: 'plan' });
	l.put('notice', { notice: 'asks', asks: false });
	const [note, ...others] = l.model.turns[0].items;
	assert.deepEqual([note.kind, note.title, others], ['note', 'The server set mode to plan again', []]);
});

test('a limit that takes effect is a note with the words of the server', () => {
	const l = log();
	l.start();
	l.put('notice', { notice: 'limit', limit: 'memory', text: 'a process has reached the limit' });
	const [{ kind, note, title }] = l.model.turns[0].items;
	assert.deepEqual([kind, note, title], ['note', 'warning', 'a process has reached the limit']);
});

test('an undo is a note that says whether all files were restored', () => {
	const l = log();
	l.start();
	l.put('notice', { notice: 'undone', restored_turn: 1 });
	l.put('notice', { notice: 'undone', restored_turn: 1, incomplete: true });
	const titles = l.model.turns[0].items.map(({ title }) => title);
	assert.deepEqual(titles, ['Files restored to before turn 1', 'Files restored in part to before turn 1']);
});

test('an unknown or malformed notice is shown raw', () => {
	const l = log();
	l.start();
	l.put('notice', { notice: 'from the future' });
	l.put('notice', { notice: 'restored', setting: null, value: {} });
	l.put('notice', { notice: 'limit', text: null });
	assert.deepEqual(
		l.model.turns[0].items.map(({ kind, count }) => [kind, count]),
		[['raw', 3]]
	);
});

test('malformed updates do not throw', () => {
	const l = log();
	l.start({ prompt: 'a string' });
	l.put('event', {});
	l.put('event', { event: { method: 'session/update' } });
	l.put('event', { event: { method: 'session/update', params: { update: null } } });
	for (const kind of [
		'agent_message_chunk',
		'tool_call',
		'tool_call_update',
		'plan',
		'available_commands_update',
		'current_mode_update',
		'config_option_update',
		'session_info_update',
		'usage_update',
		'notice',
		'user_message_chunk'
	])
		l.update(kind, {});
	l.update('plan', { entries: 'no list' });
	l.update('tool_call', { toolCallId: 't', content: 7, locations: 'x' });
	l.put('permission_resolved', { request_id: 'nobody' });
	l.end({ turn_index: 99 });
	assert.equal(l.model.turns[0].prompt[0].text, 'a string');
});

test('settings: seed() wins over the log up to its head, and the log wins after it', () => {
	const l = log();
	seed(l.model, {
		head: 2,
		modes: {
			currentModeId: 'plan',
			availableModes: [
				{ id: 'plan', name: 'Plan' },
				{ id: 'code', name: 'Code' }
			]
		},
		commands: [{ name: 'new' }]
	});
	l.update('current_mode_update', { currentModeId: 'code' }); // 1
	l.update('available_commands_update', { availableCommands: [] }); // 2
	assert.deepEqual([l.model.modes.currentModeId, l.model.commands.length, l.model.turns.length], ['plan', 1, 0]);
	l.update('current_mode_update', { currentModeId: 'code' }); // 3
	assert.equal(l.model.modes.currentModeId, 'code');
	assert.equal(l.items[0].title, 'Mode is now Code');
});

test('usage, title, commands, the agent’s words on the turn', () => {
	const l = log();
	l.start();
	l.update('usage_update', { used: 5, size: 10, cost: { amount: 1, currency: 'USD' } });
	l.update('session_info_update', { title: 'T' });
	l.update('available_commands_update', { availableCommands: [{ name: 'x' }] });
	l.put('event', { event: { id: 1, result: { stopReason: 'end_turn', usage: { totalTokens: 7 } } } });
	assert.deepEqual(
		[l.model.usage.used, l.model.title, l.model.commands.length, l.model.turns[0].usage.totalTokens],
		[5, 'T', 1, 7]
	);
	assert.equal(l.items.length, 0);
	l.put('session_closed', { reason: 'idle' });
	assert.deepEqual(l.model.closed, { reason: 'idle' });
});

test('an echoed prompt is not shown twice', () => {
	const l = log();
	l.start();
	l.update('user_message_chunk', { content: { type: 'text', text: 'hi' } });
	l.update('user_message_chunk', { content: { type: 'text', text: 'something else' } });
	assert.deepEqual(
		l.items.map(({ kind, parts }) => [kind, textOf(parts)]),
		[['user', 'something else']]
	);
});

test('a steered prompt is a message of the user in the running turn', () => {
	const l = log();
	l.start();
	l.say('so ');
	l.put('turn_steer', { prompt: [{ type: 'text', text: 'to the left' }], id: 's1' });
	l.put('turn_steer', { prompt: 7, id: null });
	l.say('on');
	assert.deepEqual(
		l.items.map(({ kind, parts }) => [kind, textOf(parts)]).filter(([, text]) => text),
		[
			['message', 'so '],
			['user', 'to the left'],
			['message', 'on']
		]
	);
});

test('promptParts restores uploads as files', () => {
	const files = text => promptParts([{ type: 'text', text }]);
	assert.deepEqual(files('[Attached files]\n/d/uploads/1/a.txt\n/d/uploads/2/b.txt\n/review this'), {
		text: '/review this',
		files: ['/d/uploads/1/a.txt', '/d/uploads/2/b.txt'],
		others: []
	});
	assert.deepEqual(files('[Attached files]\n/d/uploads/1/a.txt').files, ['/d/uploads/1/a.txt']);
	assert.deepEqual(files('no [Attached files]\n/x'), { text: 'no [Attached files]\n/x', files: [], others: [] });
	assert.equal(promptParts('plain').text, 'plain');
	assert.equal(promptParts(null).text, '');
	assert.equal(promptParts([{ type: 'image' }, { type: 'text', text: 'x' }]).others.length, 1);
});

test('what a subagent does is within the call of its parent', () => {
	const l = log();
	const child = { subagent: { tool_call_id: 'a' } };
	l.start();
	l.say('I ask ');
	l.update('tool_call', { toolCallId: 'a', title: 'Look around', kind: 'think', status: 'in_progress' });
	l.say('Looking ', {}, child);
	l.say('someone.'); // at the same time
	l.update('tool_call', { toolCallId: 'e', title: 'Edit', kind: 'edit', locations: [{ path: '/x' }] }, child);
	l.say('Deeper.', {}, { subagent: { tool_call_id: 'e' } });
	l.update('usage_update', { used: 7 }, child);
	assert.equal(l.model.usage, null);
	const [, host, after] = l.items;
	assert.deepEqual(
		[host.title, textOf(after.parts), answerOf(l.model.turns[0])],
		['Look around', 'someone.', 'I ask \n\nsomeone.']
	);
	const [words, edit] = host.items;
	assert.deepEqual([textOf(words.parts), words.done, textOf(edit.items[0].parts)], ['Looking ', true, 'Deeper.']);
	assert.deepEqual([nowOf(host), isUrgent(host), changesFiles(host)], [edit, false, true]);
	// A change within it is one of the call, too.
	l.model.dirty.clear();
	l.put('permission_request', {
		request_id: 'p',
		request: { toolCall: { toolCallId: 'e' }, options: [] },
		expires_at: 1
	});
	assert.deepEqual([l.model.dirty.has(edit), l.model.dirty.has(host), waits(host)], [true, true, true]);
	l.model.dirty.clear();
	l.put('permission_resolved', { request_id: 'p', outcome: {}, by: 'client' });
	assert.deepEqual([l.model.dirty.has(host), waits(host)], [true, false]);
	l.update('tool_call_update', { toolCallId: 'e', status: 'completed' }, child);
	l.update('tool_call_update', { toolCallId: 'a', status: 'completed' });
	assert.deepEqual([[...changedPaths(l.model.turns[0])], nowOf(host)], [['/x'], undefined]);
	l.update('tool_call', { toolCallId: 'f', title: 'npm test', status: 'failed' }, child);
	assert.ok(isUrgent(host));
	l.end();
	assert.equal(l.items.length, 3);
});

test('a subagent whose parent is unknown, or itself, has a call of its own', () => {
	const l = log();
	l.start();
	l.say('Here.', {}, { subagent: { tool_call_id: 'gone' } });
	l.update('tool_call', { toolCallId: 'x', title: 'X' }, { subagent: { tool_call_id: 'x' } });
	l.say('There.', {}, { subagent: { session_id: 's', tool_call_id: 'gone' } });
	l.say('There.', {}, { subagent: { session_id: 's' } });
	assert.deepEqual(
		l.items.map(({ title, items }) => [title, items.map(({ parts }) => textOf(parts))]),
		[
			['Subagent', ['Here.There.There.']],
			['X', []]
		]
	);
	for (const subagent of [7, [], null, {}, { session_id: {}, tool_call_id: [] }]) l.say('Mine.', {}, { subagent });
	assert.equal(answerOf(l.model.turns[0]), 'Mine.'.repeat(5));
});

test('a subagent with a session of its own is named by it', () => {
	const l = log();
	const of = session_id => ({ subagent: { session_id } });
	const text = words => ({ content: [{ type: 'text', text: words }] });
	l.start();
	l.update('subagent_update', { sessionId: 's', title: 'Look', description: 'reader', state: { state: 'running' } });
	const [host] = l.items;
	assert.deepEqual([host.title, host.status, host.items], ['Look · reader', 'in_progress', []]);
	// Both sides report a message.
	const task = { messageId: 'm', senderSessionId: 'own', recipientSessionId: 's', ...text('Look around.') };
	l.update('session_message', task);
	l.update('session_message', task, of('s'));
	l.update('tool_call', { toolCallId: 't', title: 'Read', kind: 'read' }, of('s'));
	l.update('tool_call', { toolCallId: 't', title: 'Mine' }); // another session, another call
	const request = { sessionId: 's', toolCall: { toolCallId: 't' }, options: [] };
	l.put('permission_request', { request_id: 'p', request, expires_at: 1 });
	assert.deepEqual([host.items[1].permissions.length, l.items.length], [1, 2]);
	const form = { sessionId: 's', mode: 'form', message: 'Which?' };
	l.put('elicitation_request', { request_id: 'q', request: form, expires_at: 1 });
	assert.ok(waits(host.items[2]));
	l.say('Done.', {}, of('s'));
	l.update('session_message', { messageId: 'r', senderSessionId: 's', recipientSessionId: 'own', ...text('Done.') });
	l.update('session_message_chunk', { messageId: 'r', content: { type: 'text', text: 'Really.' } });
	l.update('plan', { entries: [{ content: 'Look' }] }, of('s'));
	l.update('available_commands_update', { availableCommands: [{ name: 'theirs' }] }, of('s'));
	assert.deepEqual(
		host.items.map(({ kind, parts }) => [kind, parts ? textOf(parts) : '']),
		[
			['user', 'Look around.'],
			['tool', ''],
			['question', ''],
			['message', 'Done.'],
			['message', 'Really.'],
			['plan', '']
		]
	);
	assert.deepEqual([l.model.commands, l.model.turns[0].plan], [null, null]);
	l.update('subagent_update', { sessionId: 's', state: { state: 'idle', stopReason: 'cancelled' } });
	assert.deepEqual([host.abandoned, host.endedAt], [true, null]);
	l.update('subagent_update', { sessionId: 's', state: { state: 'running' } });
	assert.equal(host.abandoned, false);
	const error = { code: -1, message: 'No quota.' };
	l.update('subagent_update', { sessionId: 's', state: { state: 'idle', stopReason: 'error', error } });
	assert.deepEqual([host.status, host.items.at(-1).title, isUrgent(host.items.at(-1))], ['failed', 'No quota.', true]);
	l.end();
	// Its parent asks it again, in another turn.
	l.start({ turn_index: 2 });
	l.say('Again.', {}, { ...of('s'), turn_index: 2 });
	assert.deepEqual([l.items[0].title, textOf(l.items[0].items[0].parts)], ['Look · reader', 'Again.']);
	l.update('session_message', { messageId: 'm', senderSessionId: 'x', ...text('?') }, { turn_index: 2 });
	assert.equal(l.items.at(-1).kind, 'raw');
});

test('a compaction is a call with the summary', () => {
	const l = log();
	const told = () => l.items.map(({ status, content }) => [status, ...content.map(one => textOf([one.content]))]);
	l.start();
	l.update('compaction_update', { compactionId: 'c', status: 'in_progress' });
	l.update('compaction_summary_chunk', { compactionId: 'c', content: { type: 'text', text: 'So ' } });
	l.update('compaction_summary_chunk', { compactionId: 'c', content: { type: 'text', text: 'far.' } });
	assert.deepEqual(told(), [['in_progress', 'So far.']]);
	l.update('compaction_update', { compactionId: 'c', status: 'completed' });
	assert.deepEqual([told(), changesFiles(l.items[0])], [[['completed', 'So far.']], false]);
	l.update('compaction_update', { compactionId: 'd', status: 'failed', error: 'No room.' });
	assert.deepEqual(told()[1], ['failed', 'No room.']);
	l.update('compaction_update', { compactionId: 'e', status: 'cancelled' });
	l.update('compaction_update', { status: 'completed' });
	l.end();
	assert.deepEqual([l.items[2].abandoned, l.items[3].kind], [true, 'raw']);
});

test('only what changed is dirty', () => {
	const l = log();
	l.start();
	l.say('a');
	l.update('tool_call', { toolCallId: 't', title: 'x' });
	const [message, tool] = l.items;
	l.model.dirty.clear();
	l.update('tool_call_update', { toolCallId: 't', status: 'completed' });
	assert.deepEqual([l.model.dirty.has(tool), l.model.dirty.has(message)], [true, false]);
});

test('an entry costs the same at the end of a long log as at its beginning', () => {
	/** Of the processor, ms: a clock would also measure what else the machine does. */
	const timeOf = (logs, count) => {
		const begun = process.cpuUsage();
		for (let k = 0; k < logs; k += 1) {
			const l = log();
			l.start();
			for (let n = 0; n < count; n += 1) {
				l.update('tool_call', { toolCallId: `t${n}`, title: 'x' });
				l.say('word ');
				if (n % 100 === 0) l.model.dirty.clear(); // as a view does
			}
		}
		return process.cpuUsage(begun).user / 1000;
	};
	timeOf(1, 1000); // warm
	const [short, long] = [timeOf(20, 1000), timeOf(1, 20_000)];
	// Were each entry as dear as its log is long, it would be twenty times as much.
	assert.ok(long < short * 4 + 100, `twenty of 1,000 took ${short} ms, one of 20,000 took ${long} ms`);
});
