// The official TypeScript SDK, as it comes from npm, as a client of `/acp`.
//
// URL and TOKEN are in the environment; what it has seen is printed as one line of JSON.

import * as acp from '@agentclientprotocol/sdk';
import { createWebSocketStream } from '@agentclientprotocol/sdk/experimental/ws-client';
import { WebSocket as NodeWebSocket } from 'ws';

const { URL: url, TOKEN: token } = process.env;
const script = (...steps) => [{ type: 'text', text: JSON.stringify({ steps }) }];
const frames = [];
const seen = { texts: {}, users: {}, asked: [] };

/** A stream that keeps what comes in: by a header from Node, by subprotocols as in a browser. */
function open(browser) {
	/** @type {any} */
	const Base = browser ? globalThis.WebSocket : NodeWebSocket;
	const made = [];
	class Recording extends Base {
		constructor(...args) {
			super(...args);
			made.push(this);
			this.addEventListener('message', ({ data }) => frames.push(String(data)));
		}
	}
	const login = browser
		? { protocols: ['acp', `acp.auth.${token}`] }
		: { headers: { Authorization: `Bearer ${token}` } };
	const options = /** @type {any} */ ({ WebSocket: Recording, ...login });
	const stream = createWebSocketStream(url, options);
	return { stream, socket: made[0] };
}

function client() {
	return acp
		.client()
		.onNotification('session/update', ({ params }) => {
			const { sessionId, update } = /** @type {Props} */ (params);
			const kept = { agent_message_chunk: seen.texts, user_message_chunk: seen.users };
			const texts = kept[update.sessionUpdate];
			if (texts) texts[sessionId] = (texts[sessionId] ?? '') + update.content.text;
			if (update.content?.text === 'begun') seen.begun?.();
		})
		.onRequest('session/request_permission', ({ params: { sessionId, options } }) => {
			seen.asked.push(sessionId);
			const option = options.find(({ kind }) => kind === 'allow_once');
			return { outcome: { outcome: 'selected', optionId: option.optionId } };
		});
}

const initialize = { protocolVersion: acp.PROTOCOL_VERSION, clientCapabilities: {} };
const results = {};
const failure = call =>
	call.then(
		() => null,
		({ code }) => code
	);

const { stream, socket } = open(false);
await client().connectWith(stream, async agent => {
	results.initialized = await agent.request('initialize', initialize);
	const [one, two] = await Promise.all([1, 2].map(() => agent.request('session/new', { cwd: '/', mcpServers: [] })));
	results.sessions = [one.sessionId, two.sessionId];
	const prompt = (sessionId, ...steps) => agent.request('session/prompt', { sessionId, prompt: script(...steps) });

	const both = [prompt(one.sessionId, { say: 'one' }), prompt(two.sessionId, { say: 'two' })];
	results.stops = (await Promise.all(both)).map(({ stopReason }) => stopReason);
	results.permitted = await prompt(one.sessionId, { permission: true });

	const begun = new Promise(resolve => (seen.begun = resolve));
	const hanging = prompt(two.sessionId, { say: 'begun' }, { hang: true });
	await begun;
	await agent.notify('session/cancel', { sessionId: two.sessionId });
	results.cancelled = await hanging;

	const { sessions } = await agent.request('session/list', {});
	results.listed = sessions.map(({ sessionId }) => sessionId);
	await agent.request('session/close', { sessionId: two.sessionId });
	results.errors = [
		await failure(prompt(two.sessionId, { say: 'closed' })),
		await failure(agent.request('session/new', { cwd: 'not absolute', mcpServers: [] })),
		await failure(agent.request('session/archive', {}))
	];
	const aborting = new AbortController();
	const again = new Promise(resolve => (seen.begun = resolve));
	const aborted = agent.request(
		'session/prompt',
		{ sessionId: one.sessionId, prompt: script({ say: 'begun' }, { hang: true }) },
		{ cancellationSignal: aborting.signal }
	);
	await again;
	aborting.abort();
	results.aborted = await aborted.catch(({ code }) => code);
});
await /** @type {Promise<void>} */ (
	new Promise(resolve => (socket.readyState === 3 ? resolve() : socket.addEventListener('close', resolve)))
);

const before = { ...seen.texts };
seen.texts = {};
await client().connectWith(open(true).stream, async agent => {
	await agent.request('initialize', initialize);
	const [sessionId] = results.sessions;
	results.loaded = await agent.request('session/load', { sessionId, cwd: '/', mcpServers: [] });
	results.replayed = { before: before[sessionId], after: seen.texts[sessionId] };
	results.user = seen.users[sessionId];
});

console.log(JSON.stringify({ ...results, asked: seen.asked, frames }));
process.exit(0);
