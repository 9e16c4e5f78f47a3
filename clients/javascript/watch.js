// The socket for many sessions: the app's list, and the logs of any number of its sessions.

import { ClawdforgeError, closeError, frameError } from './errors.js';
import { randomId } from './ids.js';
import { afterClose, backoff } from './wire.js';

const MAX_QUEUED = 5000; // events; beyond it the socket is closed until the reader has caught up
const MAX_FRAME = 4 * 1024 * 1024;
const OPEN_MS = 30_000;
const SILENCE_MS = 45_000; // the server sends a heartbeat every 20 s
const TRANSIENT = ['rate_limited', 'draining']; // a prompt refused with one of them is sent again
const SUBSCRIPTION = 'subscribe-';
const RESEND = 'resend-';

/**
 * The app's sessions over one socket: `for await (const event of forge.watch())`. Each entry of a subscribed
 * session arrives exactly once and in order, over lost connections and restarts of the server.
 */
export class Watch {
	/** @type {Map<string, Record<string, any>>} the states of the app's open sessions, by id */
	sessions = new Map();
	#options;
	#cursors = new Map();
	#prompts = new Map();
	/** @type {WatchEvent[]} */
	#events = [];
	#socket = null;
	#isLive = false;
	#isPaused = false;
	#attempt = 0;
	#retryAfter = 0;
	#lostAt = Date.now();
	#timers = {};
	#error = null;
	#isClosed = false;
	#isStarted = false;
	#token;
	/** @type {(value?: any) => void} */
	#wake = () => {};

	/** @param {WatchOptions} options */
	constructor(options) {
		this.#options = options;
	}

	/** Closes the socket. The iteration ends; sessions and turns go on. */
	close() {
		this.#isClosed = true;
		this.#events.length = 0;
		this.#leave();
		this.#wake();
		this.#options.onClose?.();
	}

	[Symbol.dispose]() {
		this.close();
	}

	// Frames to the server.

	/**
	 * Follows the log of a session.
	 * @param {string} sessionId
	 * @param {{after?: number | null}} [options] after: 0 for the whole log, null for what happens from now on
	 */
	subscribe(sessionId, { after = null } = {}) {
		this.#cursors.set(sessionId, after);
		this.#write(this.#subscription(sessionId));
		this.#start();
	}

	/** Follows a session no longer. No further entry of it arrives. */
	unsubscribe(sessionId) {
		if (this.#cursors.delete(sessionId)) this.#write({ type: 'unsubscribe', session_id: sessionId });
	}

	/**
	 * Sends a prompt until the server has stored it. It never runs twice. Returns its id.
	 * @param {string} sessionId
	 * @param {string | object[]} prompt
	 * @param {{id?: string, files?: string[], steer?: boolean}} [options]
	 */
	prompt(sessionId, prompt, { id = randomId(), files, steer } = {}) {
		const more = { ...(files?.length && { files }), ...(steer && { steer }) };
		const frame = { type: 'prompt', session_id: sessionId, id, prompt, ...more };
		if (new TextEncoder().encode(JSON.stringify(frame)).length > MAX_FRAME)
			throw new ClawdforgeError('payload_too_large', 'The prompt exceeds 4 MiB.');
		this.#prompts.set(id, frame);
		if (!this.#timers[RESEND + sessionId]) this.#write(frame); // else after those that were refused for now
		this.#start();
		return id;
	}

	/** Sends any other frame of a session's socket, once. False if there is no connection. */
	send(sessionId, frame) {
		return this.#write({ ...frame, session_id: sessionId });
	}

	#subscription(sessionId) {
		const after = this.#cursors.get(sessionId);
		const frame = { type: 'subscribe', id: SUBSCRIPTION + sessionId, session_id: sessionId };
		return after === null ? frame : { ...frame, after };
	}

	#write(frame) {
		if (!this.#isLive) return false;
		this.#socket.send(JSON.stringify(frame));
		return true;
	}

	#resend(sessionId = null) {
		for (const frame of this.#prompts.values())
			if (sessionId === null || frame.session_id === sessionId) this.#write(frame);
	}

	// Events.

	/** @returns {AsyncGenerator<WatchEvent, void>} */
	async *[Symbol.asyncIterator]() {
		this.#start();
		for (;;) {
			if (this.#events.length) yield this.#events.shift();
			else if (this.#isClosed) return;
			else if (this.#error) throw this.#error;
			else {
				if (this.#isPaused) this.#connect();
				await new Promise(resolve => {
					this.#wake = resolve;
				});
			}
		}
	}

	#push(event) {
		this.#events.push(event);
		this.#wake();
	}

	#start() {
		if (this.#isStarted || this.#isClosed) return;
		this.#isStarted = true;
		this.#lostAt = Date.now();
		this.#connect();
	}

	async #connect() {
		this.#isPaused = false;
		const mine = {};
		this.#socket = mine;
		this.#timer('open', OPEN_MS, () => this.#lost(1006, 'timeout'));
		const { rest, credential: credentialOf, fields } = this.#options;
		this.#token = rest.token;
		try {
			const credential = await credentialOf();
			if (this.#socket !== mine) return;
			const query = fields ? `?fields=${encodeURIComponent(fields.join(','))}` : '';
			const socket = new WebSocket(`${rest.url.replace(/^http/, 'ws')}/ws${query}`);
			this.#socket = socket;
			socket.onopen = () => this.#socket === socket && socket.send(JSON.stringify({ type: 'auth', ...credential }));
			socket.onmessage = ({ data }) => this.#socket === socket && this.#received(JSON.parse(data));
			socket.onclose = ({ code, reason }) => this.#socket === socket && this.#lost(code, reason);
		} catch (error) {
			if (this.#socket === mine) this.#lost(1006, error.message);
		}
	}

	#leave() {
		const socket = this.#socket;
		this.#socket = null;
		this.#isLive = false;
		for (const name in this.#timers) this.#timer(name);
		socket?.close?.(1000);
	}

	#lost(code, reason) {
		const { rest, giveUpSecs } = this.#options;
		if (this.#isLive) this.#lostAt = Date.now();
		this.#leave();
		const why = reason || `closed with ${code}`;
		if (afterClose(code) === 'stop' && !rest.hasTokenFor(code, this.#token)) this.#fail(closeError(code, why));
		else if (Date.now() - this.#lostAt > giveUpSecs * 1000)
			this.#fail(new ClawdforgeError('connection_lost', `${rest.url}: ${why}`, { retryable: true }));
		else {
			const wait = backoff(this.#attempt) + this.#retryAfter;
			this.#attempt += 1;
			this.#retryAfter = 0;
			this.#timer('retry', wait, () => this.#connect());
		}
	}

	#fail(error) {
		this.#error = error;
		this.#wake();
	}

	#received(frame) {
		this.#timer('silence', SILENCE_MS, () => this.#lost(1006, 'silence'));
		const { type, session_id: sessionId } = frame;
		if (typeof frame.seq === 'number') this.#entry(sessionId, frame);
		else if (type === 'ready' && frame.sessions) this.#begin(frame.sessions);
		else if (type === 'ready') {
			if (this.#cursors.get(sessionId) === null) this.#cursors.set(sessionId, frame.head);
		} else if (type === 'session') this.#changed(frame.session);
		else if (type === 'session_gone') {
			this.#cursors.delete(sessionId);
			this.#gone(sessionId);
		} else if (type === 'accepted') this.#accepted(sessionId, frame);
		else if (type === 'error') this.#refused(sessionId, frame);
		else if (type === 'bye') this.#retryAfter = frame.retry_after_ms ?? 0;
		if (this.#events.length > MAX_QUEUED) {
			this.#leave(); // the reader continues where it is
			this.#isPaused = true;
		}
	}

	// Reports how the list differs from the one that is known.
	#begin(states) {
		this.#timer('open');
		this.#isLive = true;
		this.#attempt = 0;
		const listed = new Set(states.map(state => state.session_id));
		// The end of a subscribed session follows its last entry.
		for (const id of [...this.sessions.keys()]) if (!listed.has(id) && !this.#cursors.has(id)) this.#gone(id);
		for (const state of states)
			if (JSON.stringify(this.sessions.get(state.session_id)) !== JSON.stringify(state)) this.#changed(state);
		for (const id of this.#cursors.keys()) this.#write(this.#subscription(id));
		this.#resend();
	}

	#entry(sessionId, entry) {
		const last = this.#cursors.get(sessionId);
		// Without a cursor it was sent before the server got `unsubscribe`.
		if (last === undefined || (last !== null && entry.seq <= last)) return;
		if (last !== null && entry.seq > last + 1) return void this.#lost(1006, 'an entry is missing');
		this.#cursors.set(sessionId, entry.seq);
		if (entry.type === 'turn_start') this.#accepted(sessionId, entry); // its `accepted` may have been lost
		delete entry.session_id;
		this.#push({ kind: 'entry', sessionId, entry });
	}

	#accepted(sessionId, { id, turn_index: turnIndex }) {
		if (this.#prompts.delete(id)) this.#push({ kind: 'accepted', sessionId, id, turnIndex });
	}

	#refused(sessionId, frame) {
		let { id, code } = frame;
		const error = frameError(frame);
		if (this.#prompts.has(id) && TRANSIENT.includes(code)) {
			const wait = (error.retryAfter ?? 1) * 1000 + backoff(2);
			this.#timer(RESEND + sessionId, wait, () => this.#resend(sessionId));
			return;
		}
		this.#prompts.delete(id);
		if (id === SUBSCRIPTION + sessionId) {
			this.#cursors.delete(sessionId);
			if (code === 'not_found') return this.#gone(sessionId); // it was deleted
			id = undefined;
		}
		this.#push({ kind: 'refused', sessionId, id, error });
	}

	#changed(state) {
		this.sessions.set(state.session_id, state);
		this.#push({ kind: 'session', sessionId: state.session_id, state });
	}

	#gone(sessionId) {
		this.sessions.delete(sessionId);
		this.#push({ kind: 'gone', sessionId });
	}

	#timer(name, ms, call) {
		clearTimeout(this.#timers[name]);
		delete this.#timers[name];
		if (!call) return;
		this.#timers[name] = setTimeout(() => {
			delete this.#timers[name];
			call();
		}, ms);
	}
}

/**
 * @typedef {object} WatchOptions
 * @property {import('./rest.js').Rest} rest
 * @property {() => Promise<object>} credential
 * @property {string[]} [fields] of each state; all by default
 * @property {number} giveUpSecs
 * @property {() => void} [onClose]
 *
 * @typedef {object} WatchEvent
 * @property {'session' | 'gone' | 'entry' | 'accepted' | 'refused'} kind `session`: it is new, or its state has
 *   changed; `gone`: it was closed or deleted; `entry`: of the log of a subscribed session; `accepted`: the server
 *   has stored a prompt; `refused`: a prompt, a frame or a subscription has failed
 * @property {string} sessionId
 * @property {Record<string, any>} [state] of `session`
 * @property {import('./turn.js').Entry} [entry] of `entry`
 * @property {string} [id] of the prompt that was accepted or refused
 * @property {number} [turnIndex] of `accepted`
 * @property {ClawdforgeError} [error] of `refused`
 */
