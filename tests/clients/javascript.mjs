// The JavaScript client against the server at URL, with the token TOKEN. pytest starts both.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import process from 'node:process';
import { after, test } from 'node:test';
import { Clawdforge, ClawdforgeError, TurnError, textOf } from '../../clients/javascript/client.js';

const { URL: url, TOKEN: token } = process.env;
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

test('a response that was cut off is asked for again, or an error', async () => {
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
	const updates = [];
	const stream = forge.runStream(prompt, { agent: 'mock' });
	let step = await stream.next();
	for (; !step.done; step = await stream.next()) updates.push(step.value);
	assert.ok(updates.length);
	assert.deepEqual(step.value.result, [1, 2]);
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
