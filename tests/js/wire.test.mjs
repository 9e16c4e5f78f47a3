// The wire without a network: a fake socket, a clock that tests move, dice that tests throw.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { afterClose, backoff, Wire, WireError } from '../../static/wire.js';

/** A world in which nothing happens unless the test makes it happen. */
function world(options = {}) {
	const timers = new Map();
	let time = 1_000_000;
	let ids = 0;
	const sockets = [];
	class Socket {
		sent = [];
		onopen;
		onmessage;
		onclose;
		constructor(url) {
			this.url = url;
			sockets.push(this);
		}
		send(text) {
			this.sent.push(JSON.parse(text));
		}
		close(code) {
			this.closedWith = code;
		}
		// The server's actions:
		open() {
			this.onopen?.({});
		}
		get(frame) {
			this.onmessage?.({ data: JSON.stringify(frame) });
		}
		end(code, reason = '') {
			this.onclose?.({ code, reason });
		}
	}
	const seen = { entries: [], statuses: [], resets: 0, errors: [], rejected: [], ready: [] };
	const env = {
		WebSocket: Socket,
		now: () => time,
		random: () => 1, // the longest wait, so that a test knows it
		uuid: () => `id${(ids += 1)}`,
		setTimeout(fn, ms) {
			const timer = (ids += 1);
			timers.set(timer, { at: time + ms, fn });
			return timer;
		},
		clearTimeout: timer => timers.delete(timer)
	};
	const wire = new Wire({
		url: 'ws://test/sessions/s/ws',
		credential: async () => ({ token: 'cf_x' }),
		on: {
			entry: entry => seen.entries.push(entry.seq),
			status: status => seen.statuses.push(status.state),
			reset: () => (seen.resets += 1),
			error: frame => seen.errors.push(frame.code),
			rejected: (id, error) => seen.rejected.push([id, error.code]),
			ready: frame => seen.ready.push(frame.head)
		},
		env,
		...options
	});
	return {
		wire,
		env,
		seen,
		sockets,
		get socket() {
			return sockets.at(-1);
		},
		/** Lets promises settle. */
		settle: () => new Promise(resolve => setImmediate(resolve)),
		/** Moves the clock, firing what falls due on the way, in order. */
		async pass(ms) {
			const end = time + ms;
			for (;;) {
				const due = [...timers].filter(([, { at }]) => at <= end).sort((a, b) => a[1].at - b[1].at)[0];
				if (!due) break;
				timers.delete(due[0]);
				time = Math.max(time, due[1].at);
				due[1].fn();
				await this.settle();
			}
			time = end;
		},
		/** Connects up to `ready`. */
		async live(head = 0, extra = {}) {
			wire.start();
			await this.settle();
			this.socket.open();
			this.socket.get({ type: 'ready', protocol: 1, head, ...extra });
			return this.socket;
		}
	};
}

const entry = (seq, more = {}) => ({ type: 'event', seq, ts: seq, turn_index: 1, event: {}, ...more });

test('the first frame authenticates and sends the position', async () => {
	const w = world();
	const socket = await w.live(2);
	assert.deepEqual(socket.sent, [{ type: 'auth', token: 'cf_x', after: 0 }]);
	socket.get(entry(1));
	socket.get(entry(2));
	assert.deepEqual(w.seen.entries, [1, 2]);
	assert.deepEqual(w.seen.statuses, ['connecting', 'live']);
	socket.end(1006);
	await w.pass(500);
	w.socket.open();
	assert.deepEqual(w.socket.sent[0], { type: 'auth', token: 'cf_x', after: 2 });
});

test('a ticket is requested for each connection', async () => {
	let tickets = 0;
	const w = world({ credential: async () => ({ ticket: `t${(tickets += 1)}` }) });
	const socket = await w.live();
	assert.equal(socket.sent[0].ticket, 't1');
	socket.end(1006);
	await w.pass(500);
	w.socket.open();
	assert.equal(w.socket.sent[0].ticket, 't2');
});

test('after: null starts live and resumes from there', async () => {
	const w = world({ after: null });
	const socket = await w.live(41);
	assert.equal('after' in socket.sent[0], false);
	socket.get(entry(42));
	socket.end(1006);
	await w.pass(500);
	w.socket.open();
	assert.equal(w.socket.sent[0].after, 42);
	assert.deepEqual(w.seen.entries, [42]);
});

test('a repeated entry is not delivered again', async () => {
	const w = world();
	const socket = await w.live(2);
	for (const seq of [1, 2, 1, 2, 3]) socket.get(entry(seq));
	assert.deepEqual(w.seen.entries, [1, 2, 3]);
});

test('a gap in the sequence numbers causes a reconnect', async () => {
	const w = world();
	const first = await w.live(5);
	first.get(entry(1));
	first.get(entry(3));
	assert.equal(w.wire.status.state, 'away');
	first.get(entry(4)); // whatever the old socket still says is not heard
	await w.pass(500);
	w.socket.open();
	assert.equal(w.socket.sent[0].after, 1);
	w.socket.get({ type: 'ready', head: 5 });
	for (const seq of [2, 3, 4, 5]) w.socket.get(entry(seq));
	assert.deepEqual(w.seen.entries, [1, 2, 3, 4, 5]);
});

test('a heartbeat with a head that never arrives causes a reconnect', async () => {
	const w = world();
	const socket = await w.live(1);
	socket.get(entry(1));
	socket.get({ type: 'heartbeat', head: 3 });
	await w.pass(4_999);
	assert.equal(w.wire.status.state, 'live');
	await w.pass(1);
	assert.equal(w.wire.status.state, 'away');
});

test('a heartbeat that comes during a long catch-up drops nothing', async () => {
	const w = world();
	const socket = await w.live(100);
	for (let seq = 1; seq <= 100; seq += 1) {
		if (seq === 10) socket.get({ type: 'heartbeat', head: 100 });
		socket.get(entry(seq));
		await w.pass(200);
	}
	assert.equal(w.sockets.length, 1);
	assert.equal(w.wire.last, 100);
});

test('silence causes a reconnect; a heartbeat prevents it', async () => {
	const w = world();
	const socket = await w.live();
	for (let beat = 0; beat < 5; beat += 1) {
		await w.pass(20_000);
		socket.get({ type: 'heartbeat', head: 0 });
	}
	assert.equal(w.wire.status.state, 'live');
	await w.pass(45_000);
	assert.notEqual(w.wire.status.state, 'live');
});

test('wake() detects a dead socket', async () => {
	const w = world();
	const socket = await w.live();
	w.wire.wake();
	w.wire.wake();
	assert.equal(socket.sent.filter(({ type }) => type === 'ping').length, 1);
	await w.pass(5_000);
	assert.equal(w.wire.status.state, 'away');
	w.wire.wake(); // and cuts the wait short
	await w.settle();
	assert.equal(w.wire.status.state, 'connecting');
});

test('wake() keeps a live socket', async () => {
	const w = world();
	const socket = await w.live();
	w.wire.wake();
	await w.pass(100);
	socket.get({ type: 'pong', id: 'x' });
	await w.pass(10_000);
	assert.equal(w.wire.status.state, 'live');
});

test('a connection without ready is closed after 15 s', async () => {
	const w = world();
	w.wire.start();
	await w.settle();
	w.socket.open();
	await w.pass(15_000);
	assert.equal(w.wire.status.state, 'away');
});

test('the delay doubles up to a cap, with full jitter', () => {
	assert.deepEqual(
		[0, 1, 2, 5, 6, 60].map(attempt => backoff(attempt, () => 1)),
		[500, 1000, 2000, 16_000, 30_000, 30_000]
	);
	assert.equal(
		backoff(3, () => 0),
		0
	);
	assert.equal(
		backoff(3, () => 0.25),
		1000
	);
});

test('failures accumulate until a connection lasts 10 s', async () => {
	const w = world();
	const waits = [];
	const note = () => waits.push(w.wire.status.retryAt);
	const now = 1_000_000;
	(await w.live()).end(1006);
	note();
	await w.pass(500);
	w.socket.end(1006);
	note();
	await w.pass(1000);
	w.socket.open();
	w.socket.get({ type: 'ready', head: 0 });
	await w.pass(10_000);
	w.socket.end(1006);
	note();
	const expected = [500, 500 + 1000, 500 + 1000 + 10_000 + 500];
	assert.deepEqual(
		waits,
		expected.map(ms => now + ms)
	);
});

test('every close code of the contract', () => {
	const table = {
		resume: [1000, 1001, 1005, 1006, 1011, 1012, 4000, 4003, 4004],
		slow: [1013, 4005],
		shrink: [1009],
		restart: [4002],
		stop: [4500, 4501, 4502, 4503, 4504, 4505, 4507, 4508]
	};
	for (const [verdict, codes] of Object.entries(table))
		for (const code of codes) assert.equal(afterClose(code), verdict, String(code));
});

for (const code of [4500, 4501, 4502, 4503, 4504, 4505, 4507, 4508]) {
	test(`${code} stops until start() is called again`, async () => {
		const w = world();
		const socket = await w.live();
		const { accepted } = w.wire.prompt('hi');
		socket.end(code, 'no');
		assert.equal(w.wire.status.state, 'stopped');
		assert.equal(w.wire.status.code, code);
		await assert.rejects(
			accepted,
			error => error instanceof WireError && error.code === (code === 4508 ? 'session_closed' : 'unauthorized')
		);
		await w.pass(600_000);
		assert.equal(w.sockets.length, 1);
		w.wire.start();
		await w.settle();
		assert.equal(w.sockets.length, 2);
	});
}

test('4002 restarts from the beginning of the log', async () => {
	const w = world({ after: 7 });
	const socket = await w.live(3);
	assert.equal(socket.sent[0].after, 7);
	socket.end(4002);
	assert.equal(w.seen.resets, 1);
	await w.pass(500);
	w.socket.open();
	assert.equal(w.socket.sent[0].after, 0);
});

test('retry_after_ms is added to the jitter', async () => {
	const w = world();
	const socket = await w.live();
	socket.get({ type: 'bye', code: 1012, reason: 'restarting', retry_after_ms: 3000 });
	socket.end(1012);
	assert.equal(w.wire.status.reason, 'restarting');
	await w.pass(3_499);
	assert.equal(w.sockets.length, 1);
	await w.pass(1);
	assert.equal(w.sockets.length, 2);
});

test('1013 and 4005 lengthen the delay', async () => {
	const w = world();
	(await w.live()).end(1013);
	await w.pass(3_999);
	assert.equal(w.sockets.length, 1);
	await w.pass(1);
	assert.equal(w.sockets.length, 2);
});

test('a prompt is sent again with the same id until it is accepted, then never', async () => {
	const w = world();
	const { id, accepted } = w.wire.prompt('hello'); // before there is any connection
	const first = await w.live();
	assert.deepEqual(first.sent[1], { type: 'prompt', id, prompt: 'hello' });
	first.end(1006);
	await w.pass(500);
	w.socket.open();
	w.socket.get({ type: 'ready', head: 0 });
	assert.equal(w.socket.sent[1].id, id);
	w.socket.get({ type: 'accepted', id, turn_index: 4, queued: true, duplicate: true });
	assert.deepEqual(await accepted, { type: 'accepted', id, turn_index: 4, queued: true, duplicate: true });
	w.socket.end(1006);
	await w.pass(1000);
	w.socket.open();
	w.socket.get({ type: 'ready', head: 0 });
	assert.equal(w.socket.sent.length, 1);
});

test('a turn_start confirms a prompt whose accepted was lost', async () => {
	const w = world();
	const { id, accepted } = w.wire.prompt('hello');
	const socket = await w.live(1);
	socket.get({ type: 'turn_start', seq: 1, ts: 1, turn_index: 9, id, prompt: [], context: 'new' });
	assert.equal((await accepted).turn_index, 9);
});

test('a refused prompt is rejected with the code of the contract', async () => {
	const w = world();
	const socket = await w.live();
	const { id, accepted } = w.wire.prompt('one more');
	socket.get({ type: 'error', id, code: 'queue_full', message: 'eight wait', retryable: true });
	await assert.rejects(accepted, { code: 'queue_full', message: 'eight wait', retryable: true });
	assert.deepEqual(w.seen.rejected, [[id, 'queue_full']]);
	assert.deepEqual(w.seen.errors, []);
});

test('a transient failure keeps the prompt', async () => {
	const w = world();
	const socket = await w.live();
	const { id } = w.wire.prompt('hello');
	socket.get({ type: 'error', id, code: 'rate_limited', message: 'slow down' });
	await w.pass(3_000);
	assert.deepEqual(
		socket.sent.slice(1).map(frame => frame.id),
		[id, id]
	);
});

test('refused prompts follow after the time of the server, in their order', async () => {
	const w = world();
	const socket = await w.live();
	const { id } = w.wire.prompt('one');
	socket.get({ type: 'error', id, code: 'rate_limited', message: 'slow down', retry_after_ms: 10_000 });
	const later = w.wire.prompt('two');
	const sent = () => socket.sent.slice(1).map(frame => frame.id);
	await w.pass(9_999);
	assert.deepEqual(sent(), [id]);
	await w.pass(3_000);
	assert.deepEqual(sent(), [id, id, later.id]);
});

test('a listener may know better what follows a close code', async () => {
	const w = world();
	const wire = new Wire({
		url: 'ws://test/sessions/s/ws',
		credential: async () => ({ token: 'cf_x' }),
		on: { closed: code => (code === 4503 ? 'resume' : undefined) },
		env: w.env
	});
	wire.start();
	await w.settle();
	w.socket.open();
	w.socket.end(4503);
	assert.equal(wire.status.state, 'away');
	await w.pass(1_000);
	w.socket.end(4500);
	assert.equal(wire.status.state, 'stopped');
});

test('1009 rejects the largest prompt and resends the others', async () => {
	const w = world();
	const socket = await w.live();
	const small = w.wire.prompt('small');
	const large = w.wire.prompt('x'.repeat(10_000));
	socket.end(1009);
	await assert.rejects(large.accepted, { code: 'payload_too_large' });
	await w.pass(500);
	w.socket.open();
	w.socket.get({ type: 'ready', head: 0 });
	assert.deepEqual(
		w.socket.sent.slice(1).map(({ id }) => id),
		[small.id]
	);
});

test('a prompt larger than a frame is rejected without sending', async () => {
	const w = world();
	const socket = await w.live();
	const { accepted } = w.wire.prompt('ü'.repeat(3 * 1024 * 1024));
	await assert.rejects(accepted, { code: 'payload_too_large' });
	assert.equal(socket.sent.length, 1);
});

test('a permission answer is resent until it is resolved', async () => {
	const w = world();
	const socket = await w.live(0);
	socket.end(1006);
	assert.equal(w.wire.answer('r1', 'allow'), false);
	await w.pass(500);
	w.socket.open();
	w.socket.get({ type: 'ready', head: 0 });
	assert.deepEqual(w.socket.sent[1], { type: 'permission', id: 'r1', request_id: 'r1', option_id: 'allow' });
	w.socket.get(entry(1, { type: 'permission_resolved', request_id: 'r1', outcome: {}, by: 'client' }));
	w.socket.end(1006);
	await w.pass(1000);
	w.socket.open();
	w.socket.get({ type: 'ready', head: 1 });
	assert.equal(w.socket.sent.length, 1);
});

test('errors of other frames are reported; other frames are sent at once or not at all', async () => {
	const w = world();
	assert.equal(w.wire.cancel(), false);
	const socket = await w.live();
	assert.equal(w.wire.cancel(3), true);
	assert.equal(w.wire.cancel(), true);
	assert.equal(w.wire.send({ type: 'set_mode', mode: 'plan' }), true);
	assert.deepEqual(socket.sent.slice(1), [
		{ type: 'cancel', turn_index: 3 },
		{ type: 'cancel' },
		{ type: 'set_mode', mode: 'plan' }
	]);
	socket.get({ type: 'error', code: 'not_found', message: 'nothing to cancel' });
	assert.deepEqual(w.seen.errors, ['not_found']);
});

test('frames of unknown types are ignored', async () => {
	const w = world();
	const socket = await w.live();
	socket.get({ type: 'from_the_future', x: 1 });
	assert.equal(w.wire.status.state, 'live');
});

test('a failed credential request is retried', async () => {
	let tries = 0;
	const w = world({
		async credential() {
			tries += 1;
			if (tries < 3) throw new Error('offline');
			return { token: 'cf_x' };
		}
	});
	w.wire.start();
	await w.settle();
	assert.equal(w.wire.status.state, 'away');
	await w.pass(500);
	await w.pass(1000);
	assert.equal(w.sockets.length, 1);
});

test('stop() works while connecting and rejects pending prompts', async () => {
	const w = world();
	w.wire.start();
	const { accepted } = w.wire.prompt('hello');
	w.wire.stop();
	await assert.rejects(accepted, { code: 'stopped' });
	await w.pass(600_000);
	assert.equal(w.sockets.length, 0);
	assert.equal(w.wire.status.state, 'idle');
});
