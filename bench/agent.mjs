// A minimal ACP agent, so that the benchmark does not measure the agent.
//
// For the prompt "hi", it sends one update at once, and ends the turn 10 ms later, as agents that
// stream do not end immediately. For "burst N", it sends N small updates, numbered from 0, which it
// encodes once and writes in large pieces. For "tick N", it sends one update every 50 ms, N times.
// Its text is the time of CLOCK_MONOTONIC in nanoseconds. For "permission N" and "question N", it asks N
// times, with the time in the title or the message, and sends an update with the time of each answer.
// For "steer N", it accepts N prompts for the running turn, and sends an update with the time of each.

import { randomUUID } from 'node:crypto';
import process from 'node:process';

const PIECE_BYTES = 64 << 10;
const ANSWER_MS = 10;
const TICK_MS = 50;
const PAUSE_MS = 3;
const bursts = new Map();

const line = message => `${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`;
const send = message => process.stdout.write(line(message));

function update(sessionId, text) {
	const content = { type: 'text', text };
	return {
		method: 'session/update',
		params: { sessionId, update: { sessionUpdate: 'agent_message_chunk', content } }
	};
}

function prepare(sessionId, count) {
	const key = `${sessionId} ${count}`;
	if (!bursts.has(key)) {
		const lines = Array.from({ length: count }, (_, n) => line(update(sessionId, `${n} `)));
		bursts.set(key, Buffer.from(lines.join('')));
	}
	return bursts.get(key);
}

const methods = {
	initialize: () => ({
		protocolVersion: 1,
		agentCapabilities: { loadSession: true },
		agentInfo: { name: 'bench', version: '1' },
		_meta: { steering: { supported: true } },
		authMethods: []
	}),
	'session/new': () => ({ sessionId: randomUUID() }),
	'session/load': () => ({})
};

const now = () => `${process.hrtime.bigint()}`;
const answers = new Map(); // id of a request -> called with the response
/** @type {(request: any, received: string) => void} */
let steered = () => {};

function ask(sessionId, kind, left, answer) {
	if (!left) return send(answer);
	const id = randomUUID();
	answers.set(id, () => {
		send(update(sessionId, now()));
		setTimeout(ask, PAUSE_MS, sessionId, kind, left - 1, answer);
	});
	if (kind === 'question') {
		const requestedSchema = { type: 'object', properties: {} };
		const params = { sessionId, mode: 'form', message: now(), requestedSchema };
		send({ id, method: 'elicitation/create', params });
	} else {
		const options = [{ optionId: 'yes', name: 'Yes', kind: 'allow_once' }];
		const toolCall = { toolCallId: id, title: now() };
		send({ id, method: 'session/request_permission', params: { sessionId, toolCall, options } });
	}
}

function prompt(id, { sessionId, prompt: blocks }) {
	const answer = { id, result: { stopReason: 'end_turn' } };
	const [word, count] = blocks[0].text.trim().split(' ');
	if (word === 'burst') {
		const bytes = prepare(sessionId, Number(count));
		for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
			process.stdout.write(bytes.subarray(at, at + PIECE_BYTES));
		}
		send(answer);
	} else if (word === 'permission' || word === 'question') {
		ask(sessionId, word, Number(count), answer);
	} else if (word === 'steer') {
		let left = Number(count);
		send(update(sessionId, 'ready'));
		steered = (request, received) => {
			send({ id: request, result: { outcome: 'injected' } });
			send(update(sessionId, received));
			if (!--left) send(answer);
		};
	} else if (word === 'tick') {
		let left = Number(count);
		const timer = setInterval(() => {
			send(update(sessionId, `${process.hrtime.bigint()} `));
			if (--left) return;
			clearInterval(timer);
			send(answer);
		}, TICK_MS);
	} else {
		send(update(sessionId, '0 '));
		setTimeout(send, ANSWER_MS, answer);
	}
}

function take(id) {
	const answer = answers.get(id);
	answers.delete(id);
	return answer;
}

let rest = '';
process.stdin.setEncoding('utf8');
process.stdin.on('data', data => {
	const lines = (rest + data).split('\n');
	rest = lines.pop();
	for (const { id, method, params } of lines.filter(Boolean).map(text => JSON.parse(text))) {
		if (method === 'session/prompt') prompt(id, params);
		else if (method === '_session/steering') steered(id, now());
		else if (answers.has(id) && !method) take(id)();
		else if (id !== undefined && method in methods) send({ id, result: methods[method](params) });
		else if (id !== undefined && method) send({ id, error: { code: -32601, message: method } });
	}
});
process.stdin.on('end', () => process.exit(0));
