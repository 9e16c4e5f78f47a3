// The JavaScript client against the server at URL, with the token TOKEN. pytest starts both.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import process from 'node:process';
import { after, test } from 'node:test';
import { Clawdforge, ClawdforgeError, TurnError, textOf } from '../../clients/javascript/client.js';

const { URL: url, TOKEN: token, ADMIN: admin, KEEPER: keeper } = process.env;
const script = (...steps) => JSON.stringify({ steps });
const forge = new Clawdforge(url, token);
after(() => forge.close());

async function failure(promise) {
	const error = await promise.then(
		() => assert.fail('it did not fail'),
		error => error
	);
	assert.ok(error instanceof ClawdforgeError, error.stack);
	return error;
}

async function collect(items) {
	const found = [];
	for await (const item of items) found.push(item);
	return found;
}

function assertWithoutGaps(entries) {
	assert.deepEqual(
		entries.map(entry => entry.seq),
		entries.map((_, index) => entries[0].seq + index)
	);
}

test('a turn yields the text of the answer', async () => {
	const session = await forge.createSession({ agent: 'mock' });
	const turn = session.prompt(script({ say: 'one ' }, { say: 'two' }));
	assert.deepEqual(await collect(turn.text()), ['one ', 'two']);
	const { text, stopReason, turnIndex } = await turn.result();
	assert.deepEqual([text, stopReason, turnIndex], ['one two', 'end_turn', 1]);
	const more = [1, 2, 3].map(number => session.prompt(`prompt ${number}`));
	assert.deepEqual(await Promise.all(more.map(async one => (await one.result()).text)), [
		'echo: prompt 1',
		'echo: prompt 2',
		'echo: prompt 3'
	]);
});

test('errors have the code of the server', async () => {
	assert.equal((await failure(forge.createSession({ agent: 'no-such-agent' }))).code, 'bad_request');
	const unknown = '00000000-0000-4000-8000-000000000000';
	assert.equal((await failure(forge.session(unknown).ask('hello'))).code, 'not_found');
	const stranger = new Clawdforge(url, 'cf_wrong');
	assert.equal((await failure(stranger.agents())).code, 'unauthorized');
	assert.equal((await failure(stranger.session(unknown).ask('hello'))).code, 'unauthorized');
	const session = await forge.createSession({ agent: 'mock' });
	const failed = await failure(session.ask(script({ say: 'so far' }, { exit: 1 })));
	assert.ok(failed instanceof TurnError);
	assert.deepEqual([failed.code, failed.retryable, failed.text], ['agent_failed', true, 'so far']);
	assert.equal((await failure(session.ask('x'.repeat(5 << 20)))).code, 'payload_too_large');
	await session.close();
	assert.equal((await failure(session.ask('hello'))).code, 'session_closed');
	const nowhere = new Clawdforge('http://127.0.0.1:9', 'cf_x', { retrySecs: 0.1, giveUpSecs: 0.1 });
	assert.equal((await failure(nowhere.agents())).code, 'connection_lost');
	assert.equal((await failure(nowhere.session(unknown).ask('hello'))).code, 'connection_lost');
});

test('a call that was cut off or refused for now is repeated, or an error', async () => {
	const cut = (response, begun) => response.write(begun, () => response.destroy());
	const replies = [];
	const server = createServer((_, response) => replies.shift()(response));
	await once(server.listen(0, '127.0.0.1'), 'listening');
	const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
	const client = new Clawdforge(`http://127.0.0.1:${port}`, 'cf_any');
	const session = client.session('any');
	try {
		replies.push(
			response => cut(response, '{"session_id": "a'),
			response => response.end('{"session_id": "any"}')
		);
		assert.deepEqual(await session.state(), { session_id: 'any' });
		replies.push(
			response => cut(response, 'hel'),
			response => response.end('hello')
		);
		assert.equal(await session.files.readText('a.txt'), 'hello');
		replies.push(response => cut(response, '{"session_id": "a'));
		assert.equal((await failure(client.createSession())).code, 'connection_lost');
		replies.push(response => cut(response, 'data: {}\n\n'));
		assert.equal((await failure(collect(client.runStream('hello')))).code, 'connection_lost');
		const refuse = (status, headers, body) => response => response.writeHead(status, headers).end(body);
		const slowDown = JSON.stringify({ ok: false, code: 'rate_limited', error: 'slow down' });
		// A date in the past: at once.
		const later = { 'Retry-After': 'Thu, 01 Jan 1970 00:00:00 GMT' };
		replies.push(refuse(429, later, slowDown), response => response.end('{"session_id": "any"}'));
		assert.equal((await client.createSession()).id, 'any');
		// A proxy, while its server restarts: the call may have been carried out.
		replies.push(refuse(502, {}, '<h1>Bad Gateway</h1>'), response => response.end('{"session_id": "any"}'));
		assert.deepEqual(await session.state(), { session_id: 'any' });
		replies.push(refuse(502, {}, '<h1>Bad Gateway</h1>'));
		assert.equal((await failure(client.createSession())).status, 502);
		replies.push(refuse(429, { 'Retry-After': '60' }, slowDown));
		assert.equal((await failure(client.agents())).retryAfter, 60);
		assert.deepEqual(replies, []);
	} finally {
		client.close();
		server.close();
	}
});

test('a prompt with a known id returns the earlier turn', async () => {
	const session = await forge.createSession({ agent: 'mock' });
	const first = await session.prompt('hello', { id: 'monday' }).result();
	await session.ask('another');
	const restarted = new Clawdforge(url, token);
	const turn = restarted.session(session.id).prompt('hello', { id: 'monday' });
	assert.deepEqual(await turn.result(), first);
	assert.ok(turn.duplicate);
	assert.equal((await session.state()).turn_count, 2);
	restarted.close();
});

test('the tries of a message are made once', async () => {
	const session = await forge.createSession({ agent: 'mock' });
	// The second time as after a restart of the program.
	for (let time = 0; time < 2; time += 1) {
		const asking = forge.session(session.id).ask(script({ exit: 1 }), { id: 'message', retries: 1 });
		const error = await failure(asking);
		assert.ok(error instanceof TurnError);
		assert.equal(error.turnIndex, 2);
	}
	assert.equal((await session.state()).turn_count, 2);
});

test('a changed token is used for what was refused with the former one', async () => {
	const { id } = await forge.createSession({ agent: 'mock' });
	const client = new Clawdforge(url, 'cf_wrong');
	const session = client.session(id);
	const turn = session.prompt('hello');
	const watch = client.watch();
	const first = watch[Symbol.asyncIterator]().next();
	const state = session.state();
	client.setToken(token); // all three have begun
	assert.equal((await turn.result()).text, 'echo: hello');
	assert.ok((await first).value);
	assert.equal((await state).session_id, id);
	client.close();
});

test('the bot of the docs keeps its conversations over everything that happens', async () => {
	const operator = async (method, path, body) => {
		const headers = { Authorization: `Bearer ${admin}` };
		const response = await fetch(url + path, { method, headers, body: body && JSON.stringify(body) });
		assert.equal(response.status, 200, path);
		return response.json();
	};
	const newToken = async () => (await operator('POST', '/admin/tokens', { name: 'keeper' })).token;
	Object.assign(globalThis, { newToken });
	const { answer } = await import(`file://${keeper}`);
	const bot = new Clawdforge(url, await newToken());
	const sessions = new Map();
	const say = (text, id) => answer(bot, sessions, '42', text, id);
	assert.equal(await say('one', 'm1'), 'echo: one');
	const first = sessions.get('42');
	await first.close(); // as its idle time would
	assert.equal(await say('two', 'm2'), 'echo: two');
	await operator('DELETE', '/admin/tokens/keeper');
	assert.equal(await say('three', 'm3'), 'echo: three');
	sessions.set('42', bot.session(first.id)); // the bot was restarted
	assert.equal(await say('three', 'm3'), 'echo: three');
	assert.equal((await first.state()).turn_count, 3);
	assert.equal((await first.ensureOpen()).state, 'idle');
	await first.close({ purge: true });
	assert.equal(await say('four', 'm4'), 'echo: four');
	assert.notEqual(sessions.get('42').id, first.id);
	bot.close();
});

test('webhook, push and budget are managed', async () => {
	assert.equal((await failure(forge.webhook.state())).code, 'not_found');
	const set = forge.webhook.set('https://hooks.example.org/', { events: ['turn_ended'] });
	assert.equal((await failure(set)).code, 'bad_request'); // the operator has named no host
	assert.equal((await failure(forge.webhook.delete())).code, 'not_found');
	assert.ok(await forge.push.key());
	const keys = {
		p256dh: 'BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4',
		auth: 'BTBZMqHH6r4Tts7J_aSIgg'
	};
	const endpoint = 'https://updates.push.services.mozilla.com/wpush/v2/any';
	const id = await forge.push.subscribe({ endpoint, expirationTime: null, keys });
	assert.deepEqual(
		(await forge.push.subscriptions()).map(one => one.id),
		[id]
	);
	await forge.push.unsubscribe(id);
	assert.deepEqual(await forge.budget(), {});
	assert.ok(Array.isArray(await forge.folders()));
});

test('entries are delivered once over cut connections', async () => {
	const session = await forge.createSession({ agent: 'mock' });
	const sockets = new Set();
	const Real = globalThis.WebSocket;
	globalThis.WebSocket = class extends Real {
		constructor(address) {
			super(address);
			sockets.add(this);
		}
	};
	const client = new Clawdforge(url, token);
	try {
		const cut = client.session(session.id);
		const turn = cut.prompt(script({ burst: { count: 600, text: 'x', batch: 100, pause_ms: 30 } }));
		const entries = [];
		for await (const entry of turn) {
			entries.push(entry);
			if (entries.length % 150 === 0) for (const socket of sockets) socket.close();
		}
		assertWithoutGaps(entries);
		assert.equal(entries.filter(textOf).length, 600);
		assert.ok(sockets.size > 2);
	} finally {
		globalThis.WebSocket = Real;
		client.close();
	}
});

test('slow readers get the rest from the log', async () => {
	const session = await forge.createSession({ agent: 'mock' });
	const turn = session.prompt(script({ burst: { count: 2500, text: 'x' } }));
	const followed = session.entries();
	const first = [(await turn[Symbol.asyncIterator]().next()).value];
	const start = [(await followed.next()).value];
	await session.ask('later'); // the first turn has ended meanwhile
	const entries = [...first, ...(await collect(turn))];
	assertWithoutGaps(entries);
	assert.equal(entries.filter(textOf).length, 2500);
	assert.equal((await turn.result()).turnIndex, 1);
	await session.close();
	assert.deepEqual([...start, ...(await collect(followed))], await session.log());
});

test('a follower begins anywhere and ends with the session', async () => {
	const session = await forge.createSession({ agent: 'mock' });
	await session.ask('one');
	const { head } = await session.state();
	await session.ask('two');
	await session.close();
	const all = await collect(session.entries());
	assert.deepEqual(all, await session.log());
	assert.deepEqual(
		await collect(session.entries(head)),
		all.filter(entry => entry.seq > head)
	);
});

test('handlers answer permission requests and questions', async () => {
	const asked = [];
	const session = await forge.createSession({
		agent: 'mock',
		onPermission: request => asked.push(request.title) === 1,
		onQuestion: question => ({ copies: question.problem ? 2 : 0 })
	});
	const permission = { permission: { title: 'Delete it', kind: 'delete' } };
	assert.match((await session.ask(script(permission))).text, /allow/);
	assert.match((await session.ask(script(permission))).text, /reject/);
	assert.deepEqual(asked, ['Delete it', 'Delete it']);
	const form = {
		mode: 'form',
		message: 'Where?',
		requestedSchema: { type: 'object', properties: { copies: { type: 'integer', minimum: 1 } } }
	};
	assert.match((await session.ask(script({ elicit: form }))).text, /"copies": ?2/);
	session.detach();
});

test('prompts are steered, changed, withdrawn and cancelled', async () => {
	const session = await forge.createSession({ agent: 'mock-steers' });
	const running = session.prompt(script({ say: 'started' }, { hang: true }));
	for await (const text of running.text()) if (text === 'started') break;
	const steered = session.prompt('and this', { steer: true });
	assert.equal(await steered.accepted(), 1);
	assert.ok(steered.steered);
	const [edited, withdrawn, cancelled] = ['one', 'two', 'three'].map(text => session.prompt(text));
	await Promise.all([edited, withdrawn, cancelled].map(turn => turn.accepted()));
	await session.editQueued(edited.index, { prompt: 'changed' });
	await session.withdraw(withdrawn.index);
	assert.ok(await cancelled.cancel());
	assert.ok((await withdrawn.result()).withdrawn);
	assert.ok((await cancelled.result()).withdrawn);
	assert.ok(await running.cancel());
	assert.equal((await running.result()).stopReason, 'cancelled');
	assert.equal((await edited.result()).text, 'echo: changed');
	assert.equal(await edited.cancel(), false);
});

test('files are written, read, compared and restored', async () => {
	const session = await forge.createSession({ agent: 'mock' });
	await session.files.write('a folder/ü #1.txt', 'hello\n');
	assert.equal(await session.files.readText('a folder/ü #1.txt'), 'hello\n');
	assert.ok((await session.files.list()).some(file => file.path === 'a folder'));
	await session.ask(script({ write: 'made.txt' }));
	assert.deepEqual(
		(await session.files.changes()).map(file => file.path),
		['made.txt']
	);
	assert.match(await session.files.diff('made.txt'), /b\/made\.txt/);
	await session.files.undo({ turnIndex: 1 });
	assert.equal((await failure(session.files.read('made.txt'))).code, 'not_found');
	assert.ok((await session.files.archive()).size > 20);
	const file = await forge.upload('content', { name: 'note.txt' });
	assert.match((await session.ask('read', { files: [file] })).text, /note\.txt/);
});

test('sessions are listed, forked, exported and imported', async () => {
	const session = await forge.createSession({ agent: 'mock', meta: { title: 'Weather in Oslo' } });
	await session.ask('one');
	const found = await collect(forge.sessions({ q: 'oslo', page: 1, fields: ['title'] }));
	assert.deepEqual(
		found.map(state => state.session_id),
		[session.id]
	);
	assert.equal((await (await session.fork()).ask('more')).turnIndex, 2);
	const copy = await forge.importSession(await session.export());
	assert.equal((await copy.state()).state, 'closed');
	assert.ok(await session.ticket());
	const { head } = await session.update({ meta: { title: 'Rain' } });
	assert.equal(await session.markRead(head), 0);
});

test('runs are made, streamed and found again', async () => {
	const prompt = script({ say: '[1, ' }, { say: '2]' });
	assert.deepEqual((await forge.run(prompt, { agent: 'mock', key: 'k' })).result, [1, 2]);
	const stream = forge.runStream(prompt, { agent: 'mock', include: ['session_id'] });
	assert.ok((await collect(stream)).length);
	const { result, stopReason, sessionId } = await stream.result();
	assert.deepEqual([result, stopReason], [[1, 2], 'end_turn']);
	assert.ok(sessionId);
	const run = await forge.runInBackground(prompt, { agent: 'mock' });
	assert.deepEqual((await forge.backgroundRun(run.id).result()).result, [1, 2]);
	await run.end();
	assert.equal((await failure(run.poll())).code, 'not_found');
	assert.equal((await failure(forge.run(script({ exit: 1 }), { agent: 'mock' }))).code, 'agent_failed');
});

test('a watch follows the list and many sessions over one socket', async () => {
	const known = await forge.createSession({ agent: 'mock', meta: { title: 'known' } });
	const watch = forge.watch({ fields: ['title', 'state'] });
	const ids = [];
	for (let number = 0; number < 3; number += 1) {
		const { id } = await forge.createSession({ agent: 'mock' });
		ids.push(id);
		watch.subscribe(id, { after: 0 });
		const prompt = watch.prompt(id, 'hello');
		assert.equal(watch.prompt(id, 'hello', { id: prompt }), prompt); // runs once
	}
	const entries = new Map(ids.map(id => [id, []]));
	const accepted = [];
	let ended = 0;
	for await (const event of watch) {
		if (event.kind === 'accepted') accepted.push(event.sessionId);
		if (event.kind !== 'entry') continue;
		entries.get(event.sessionId).push(event.entry);
		if (event.entry.type === 'turn_end') ended += 1;
		if (ended === 3) break;
	}
	assert.deepEqual(accepted.toSorted(), ids.toSorted());
	for (const found of entries.values()) {
		assertWithoutGaps(found);
		assert.equal(found.filter(entry => entry.type === 'turn_start').length, 1);
	}
	assert.equal(watch.sessions.get(known.id).title, 'known');

	watch.unsubscribe(ids[0]);
	watch.prompt(known.id, [{ type: 'no-such-block' }]);
	watch.subscribe(known.id, { after: 10_000 });
	watch.subscribe('00000000-0000-4000-8000-000000000000');
	const errors = [];
	for await (const event of watch) {
		if (event.kind === 'refused') errors.push([event.error.code, event.id === undefined]);
		if (event.kind === 'gone') break;
	}
	assert.deepEqual(errors, [
		['bad_request', false],
		['bad_request', true]
	]);
	await forge.session(ids[1]).close({ purge: true });
	for await (const event of watch) if (event.kind === 'gone' && event.sessionId === ids[1]) break;
	assert.ok(!watch.sessions.has(ids[1]));
	watch.close();
	assert.deepEqual(await collect(watch), []);

	const stranger = new Clawdforge(url, 'cf_wrong');
	assert.equal((await failure(collect(stranger.watch()))).code, 'unauthorized');
});

test('a watch delivers each entry once over lost connections', async () => {
	const Original = globalThis.WebSocket;
	const sockets = [];
	globalThis.WebSocket = class extends Original {
		constructor(address) {
			super(address);
			sockets.push(this);
		}
	};
	const watch = forge.watch();
	try {
		const session = await forge.createSession({ agent: 'mock' });
		watch.subscribe(session.id, { after: 0 });
		const entries = [];
		let isPrompted = false;
		for await (const { kind, entry } of watch) {
			if (!isPrompted) {
				isPrompted = true;
				sockets.at(-1).close(); // the prompt waits for the next one
				watch.prompt(session.id, script({ burst: { count: 300, text: 'w', batch: 10, pause_ms: 1 } }));
			}
			if (kind !== 'entry') continue;
			entries.push(entry);
			if (entries.length % 100 === 50) sockets.at(-1).close();
			if (entry.type === 'turn_end') break;
		}
		assert.deepEqual(entries, await session.log());
		assert.ok(sockets.length > 1);
	} finally {
		globalThis.WebSocket = Original;
		watch.close();
	}
});

test('prompts refused in a watch follow after the time of the server, in their order', async () => {
	const Original = globalThis.WebSocket;
	const random = Math.random;
	const accepted = [];
	let refusedAt = 0;
	let waited = 0;
	let refused = (/** @type {any} */ _) => {};
	const isRefused = new Promise(resolve => {
		refused = resolve;
	});
	class Refusing {
		onopen;
		onmessage;
		constructor() {
			setTimeout(() => this.onopen());
		}
		answer = frame => setTimeout(() => this.onmessage({ data: JSON.stringify(frame) }));
		send(text) {
			const { type, id, session_id, prompt } = JSON.parse(text);
			if (type === 'auth') return this.answer({ type: 'ready', sessions: [] });
			if (!refusedAt) {
				refusedAt = performance.now();
				this.answer({ type: 'error', id, session_id, code: 'rate_limited', message: 'slow', retry_after_ms: 50 });
				setTimeout(refused);
				return;
			}
			waited ||= performance.now() - refusedAt;
			accepted.push(prompt);
			this.answer({ type: 'accepted', id, session_id, turn_index: accepted.length });
		}
		close() {}
	}
	globalThis.WebSocket = /** @type {any} */ (Refusing);
	Math.random = () => 0; // no time in addition to the server's
	const watch = forge.watch();
	try {
		watch.prompt('some-id', 'one');
		await isRefused;
		watch.prompt('some-id', 'two');
		for await (const { kind } of watch) if (kind === 'accepted' && accepted.length === 2) break;
		assert.deepEqual(accepted, ['one', 'two']);
		assert.ok(waited >= 49, String(waited));
	} finally {
		watch.close();
		Math.random = random;
		globalThis.WebSocket = Original;
	}
});
