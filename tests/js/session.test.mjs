// One open session with a simulated wire that records its calls.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Api } from '../../static/api.js';
import { Session } from '../../static/session.js';

const words = text => [{ type: 'text', text }];

/**
 * A session whose server and browser are simulated.
 * @param {{state?: Props, outbox?: any[]}} [given]
 */
function world({ state, outbox = [] } = {}) {
	/** @type {Props} */
	const seen = { problems: [], synced: 0, updates: [], looks: 0, sent: [], saved: outbox, changes: {} };
	let on;
	let ids = 0;
	class Wire {
		status = { state: 'live' };
		constructor(options) {
			on = options.on;
		}
		start() {}
		stop() {}
		prompt(prompt, { id = `p${(ids += 1)}`, files, ...more }) {
			seen.sent.push({ id, prompt, files, ...more });
			const accepted = new Promise((_, reject) => (seen.reject = reject));
			if (seen.refusal) seen.reject(seen.refusal);
			return { id, accepted };
		}
		cancel(turn) {
			seen.sent.push({ cancel: turn });
			return this.status.state === 'live';
		}
		send(frame) {
			seen.sent.push(frame);
			return true;
		}
	}
	const api = {
		call: async (_, path) => ({ files: seen.changes[path] ?? [] }),
		update: async (_, meta) => {
			seen.updates.push(meta);
			return { meta };
		},
		session: async () => {
			seen.looks += 1;
			await seen.meanwhile?.();
			return { meta: { title: `look ${seen.looks}` } };
		}
	};
	const storage = { outbox: () => seen.saved, saveOutbox: (_, prompts) => (seen.saved = prompts) };
	const session = new Session('s', state, { api, storage, Wire, url: 'ws://test' });
	session.on('problem', text => seen.problems.push(text));
	session.on('synced', () => (seen.synced += 1));
	let seq = 0;
	const put = (type, fields) => on.entry({ type, seq: (seq += 1), ts: seq, turn_index: 1, ...fields });
	const update = fields => put('event', { event: { method: 'session/update', params: { update: fields } } });
	session.start();
	return { session, seen, put, update, wire: (name, ...values) => on[name](...values) };
}

/** Until promises that are settled already have been heard. */
const settle = () => new Promise(resolve => setImmediate(resolve));

test('the newest notice about asking counts, not an old one', () => {
	const { session, put, wire } = world();
	wire('ready', { head: 1, permission: 'ask', asks: true });
	put('notice', { notice: 'asks', asks: false });
	assert.equal(session.state.asks, true);
	put('notice', { notice: 'asks', asks: false });
	assert.equal(session.state.asks, false);
});

test('a prompt is kept until the server has accepted it, and sent again with its id after a reload', () => {
	const { session, seen, wire } = world({ state: { meta: { title: 'A' } } });
	session.send({ prompt: words('hello'), files: ['ff_1'] });
	assert.deepEqual(seen.saved, [{ id: 'p1', prompt: words('hello'), files: ['ff_1'], state: 'sending' }]);
	const reloaded = world({ outbox: seen.saved });
	assert.deepEqual(reloaded.seen.sent, [{ id: 'p1', prompt: words('hello'), files: ['ff_1'] }]);
	wire('accepted', { id: 'p1', turn_index: 1, queued: false, duplicate: false });
	assert.deepEqual(seen.saved, []);
	assert.equal(session.outbox.get('p1').state, 'accepted'); // shown until its turn begins
});

test('a turn replaces its prompt in the outbox', () => {
	const { session, put, wire } = world({ state: { meta: { title: 'A' } } });
	session.send({ prompt: words('hello') });
	wire('ready', { head: 0, queued: [] });
	wire('accepted', { id: 'p1', turn_index: 1, queued: true, duplicate: false });
	assert.deepEqual([...session.queue.keys()], [1]);
	put('turn_start', { prompt: words('hello'), id: 'p1' });
	assert.deepEqual([session.queue.size, session.outbox.size, session.running], [0, 0, true]);
});

test('a refused prompt can be discarded', async () => {
	const { session, seen } = world();
	session.send({ prompt: words('hello') });
	seen.reject(new Error('The queue is full.'));
	await settle();
	assert.equal(session.outbox.get('p1').state, 'failed');
	session.discard(session.outbox.get('p1'));
	assert.equal(session.outbox.size, 0);
});

test('a prompt refused before sending can be discarded', async () => {
	const { session, seen } = world();
	seen.refusal = new Error('The message exceeds the limit of 4 MiB.');
	session.send({ prompt: words('hello') });
	await settle();
	assert.equal(session.outbox.get('p1').state, 'failed');
});

test('stop cancels the visible turn and not the next one', () => {
	const { session, seen, put, wire } = world();
	wire('ready', { head: 0, queued: [] });
	put('turn_start', { prompt: words('hello') });
	session.cancel();
	put('turn_end', { stop_reason: 'cancelled', duration_ms: 1 });
	session.cancel(); // a moment too late
	session.cancel(2); // out of the queue
	assert.deepEqual(seen.sent, [{ cancel: 1 }, { cancel: 2 }]);
});

test('a refused prompt stays refused after a reload and is not resent', async () => {
	const { session, seen } = world();
	session.send({ prompt: words('hello') });
	seen.reject(new Error('The queue is full.'));
	await settle();
	const reloaded = world({ outbox: JSON.parse(JSON.stringify(seen.saved)) });
	assert.deepEqual(reloaded.seen.sent, []);
	assert.equal(reloaded.session.outbox.get('p1').error, 'The queue is full.');
});

test('the queue is the one that the server reports', () => {
	const { session, wire } = world();
	wire('ready', { head: 0, queued: [{ turn_index: 2, prompt: words('of another window') }] });
	assert.deepEqual([...session.queue.keys()], [2]);
	const before = session.changeCount;
	session.hear({ queued: [], meta: { title: 'Named elsewhere' } });
	assert.deepEqual([session.queue.size, session.title], [0, 'Named elsewhere']);
	assert.ok(session.changeCount > before);
});

test('the reply to a change does not replace the queue, which may be newer', async () => {
	const { session, wire } = world();
	wire('ready', { head: 0, queued: [{ turn_index: 2, prompt: words('waits') }] });
	const { document, fetch } = globalThis;
	const reply = { meta: { title: 'hello' }, queued: [] };
	// The little that the class needs of a browser.
	Object.assign(globalThis, { document: { baseURI: 'http://x/' }, fetch: async () => Response.json(reply) });
	try {
		session.hear(await new Api('cf_x', () => {}).change('s', { meta: {} }));
	} finally {
		Object.assign(globalThis, { document, fetch });
	}
	assert.deepEqual([[...session.queue.keys()], session.title], [[2], 'hello']);
});

test('an outdated state is requested again', async () => {
	const { session, seen, put } = world();
	seen.meanwhile = () => seen.looks === 1 && put('turn_start', { prompt: words('hello') });
	await session.look();
	assert.deepEqual([session.title, seen.looks], ['look 2', 2]);
});

test('only one state request is pending at a time', async () => {
	const { session, seen } = world();
	let answer;
	seen.meanwhile = () => new Promise(resolve => (answer = resolve));
	const asked = [session.look(), session.look(), session.look()];
	assert.equal(seen.looks, 1);
	answer();
	await Promise.all(asked);
	assert.deepEqual([session.title, seen.looks], ['look 1', 1]);
	session.look();
	assert.equal(seen.looks, 2);
});

test('a session is synced after the log is read up to its head', () => {
	const { seen, put, wire } = world();
	wire('ready', { head: 2, queued: [] });
	put('turn_start', { prompt: words('hello') });
	assert.equal(seen.synced, 0);
	put('turn_end', { stop_reason: 'end_turn', duration_ms: 1 });
	assert.equal(seen.synced, 1);
	wire('reset'); // the position was unknown: all entries are sent again
	put('turn_start', { prompt: words('hello') });
	assert.equal(seen.synced, 2);
});

test('the title is the first line of the prompt until the agent sets one', async () => {
	const { session, seen, put, update, wire } = world();
	wire('ready', { head: 0, queued: [] });
	session.send({ prompt: words('Fix the test\nIt fails') });
	await settle();
	assert.equal(session.title, 'Fix the test');
	put('turn_start', { prompt: words('Fix the test\nIt fails'), id: 'p1' });
	update({ sessionUpdate: 'session_info_update', title: 'Fix a flaky test' });
	put('turn_end', { stop_reason: 'end_turn', duration_ms: 1 });
	await settle();
	assert.deepEqual(seen.updates, [{ title: 'Fix the test' }, { title: 'Fix a flaky test' }]);
});

test('a turn may end before the first title is stored', async () => {
	const { session, seen, put, update, wire } = world();
	wire('ready', { head: 0, queued: [] });
	session.send({ prompt: words('Fix the test') });
	put('turn_start', { prompt: words('Fix the test'), id: 'p1' });
	update({ sessionUpdate: 'session_info_update', title: 'Fix a flaky test' });
	put('turn_end', { stop_reason: 'end_turn', duration_ms: 1 });
	await settle();
	assert.deepEqual(seen.updates, [{ title: 'Fix the test' }, { title: 'Fix a flaky test' }]);
});

test('a title that a user set is kept', async () => {
	const { session, seen, put, update, wire } = world({ state: { meta: { title: 'Mine' } } });
	wire('ready', { head: 0, queued: [] });
	put('turn_start', { prompt: words('Fix the test') });
	update({ sessionUpdate: 'session_info_update', title: 'Fix a flaky test' });
	put('turn_end', { stop_reason: 'end_turn', duration_ms: 1 });
	await settle();
	assert.deepEqual([session.title, seen.updates], ['Mine', []]);
});

test('raw frames contain no token', () => {
	const { session, wire } = world();
	wire('frame', 'up', { type: 'auth', token: 'cf_secret', after: 7 }, '{"type":"auth","token":"cf_secret","after":7}');
	assert.deepEqual(
		session.frames.map(({ text }) => text),
		['{"type":"auth","token":"…","after":7}']
	);
});

test('a withdrawn prompt returns only if the agent did not receive it', async () => {
	const { session, put, wire } = world({ state: { head: 0 } });
	const back = [];
	session.on('withdrawn', one => back.push(one));
	wire('ready', { head: 0 });
	put('turn_start', { prompt: words('first') });
	for (const turn of [2, 3]) {
		session.send({ prompt: words(`prompt ${turn}`), files: [`ff_${turn}`] });
		wire('accepted', { id: [...session.outbox.keys()].at(-1), turn_index: turn, queued: true });
		session.withdraw(turn);
		put('turn_start', { turn_index: turn, prompt: words('[Attached files]') });
	}
	put('turn_end', { turn_index: 2, stop_reason: 'cancelled', duration_ms: 0 });
	put('turn_end', { turn_index: 3, stop_reason: 'cancelled', duration_ms: 12 });
	assert.deepEqual(back, [{ prompt: words('prompt 2'), files: ['ff_2'] }]);
	assert.deepEqual(
		session.model.turns.map(({ withdrawn }) => Boolean(withdrawn)),
		[false, true, false]
	);
});

test('a stopped session keeps what waits until the queue is resumed', () => {
	const { session, seen, put, wire } = world({ state: { meta: { title: 'A' } } });
	const queued = [2, 3].map(index => ({ turn_index: index, prompt: words(`cut ${index}`) }));
	wire('ready', { head: 0, queued });
	put('turn_start', { prompt: words('first') });
	session.pause();
	assert.deepEqual(seen.sent, [{ cancel: 2 }, { cancel: 3 }, { cancel: 1 }]);
	for (const turn_index of [2, 3]) {
		put('turn_start', { turn_index, prompt: words(`whole ${turn_index}`) });
		// The third had begun before the server heard of it.
		put('turn_end', { turn_index, stop_reason: 'cancelled', duration_ms: 0, withdrawn: turn_index === 2 });
	}
	assert.deepEqual(seen.saved, [{ id: 'turn 2', prompt: words('whole 2'), files: [], state: 'paused' }]);
	assert.equal(session.model.byIndex.get(2).elsewhere, true);
	const reloaded = world({ state: { meta: { title: 'A' } }, outbox: seen.saved });
	assert.deepEqual(reloaded.seen.sent, []);
	reloaded.session.resume();
	assert.deepEqual(reloaded.seen.sent, [{ id: 'p1', prompt: words('whole 2'), files: [] }]);
	assert.deepEqual([...reloaded.session.outbox.keys()], ['p1']);
});

test('a queued prompt is moved, changed, and sent to the running turn', () => {
	const queued = [{ turn_index: 2, prompt: words('later') }];
	const { session, seen, put, wire } = world({ state: { meta: { title: 'A' }, queued } });
	wire('ready', { head: 0, queued });
	assert.deepEqual(session.waitingPrompt(2), { prompt: words('later') });
	session.requeue(2, { before: 1 });
	assert.deepEqual(seen.sent.at(-1), { type: 'queue', turn_index: 2, before: 1 });
	session.sendNow(2);
	assert.deepEqual(seen.sent.at(-1), { cancel: 2 }); // if it has begun by now, it is not sent twice
	put('turn_start', { turn_index: 2, prompt: words('later, whole') });
	put('turn_end', { turn_index: 2, stop_reason: 'cancelled', duration_ms: 0, withdrawn: true });
	const prompt = seen.sent.at(-1);
	assert.deepEqual([prompt.prompt, prompt.steer], [words('later, whole'), true]);
	assert.equal(session.outbox.size, 1);
	wire('accepted', { id: prompt.id, turn_index: 1, queued: false, steered: true });
	assert.equal(session.outbox.size, 0);
});

test('a queued prompt of which only the beginning is known is not changed in its place', () => {
	const long = { turn_index: 2, prompt: words('x'.repeat(1000)) };
	const image = { turn_index: 3, prompt: words('[image]') };
	const { session, wire } = world({ state: { queued: [long, image] } });
	wire('ready', { head: 0, queued: [long, image] });
	assert.deepEqual([session.waitingPrompt(2), session.waitingPrompt(3)], [null, null]);
});

test('the newest turn counts the files that changed, also those that no call has named', async () => {
	const { session, seen, put, update, wire } = world({ state: { head: 0 } });
	wire('ready', { head: 0 });
	const file = path => ({ path, status: 'added', additions: null, deletions: null });
	seen.changes['/sessions/s/changes'] = [file('old.md'), file('logo.png'), file('a.py')];
	seen.changes['/sessions/s/changes?since_turn=1'] = [file('logo.png'), file('a.py')];
	put('turn_start', { prompt: words('draw') });
	update({ sessionUpdate: 'tool_call', toolCallId: 'c', title: 'run', kind: 'execute', status: 'completed' });
	put('turn_end', { stop_reason: 'end_turn', duration_ms: 5 });
	await settle();
	assert.equal(session.changed.length, 3);
	assert.equal(session.model.turns[0].files, 2);
});
