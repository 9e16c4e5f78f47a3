/**
 * The client of clawdforge, a realtime server for coding agents, for browsers and Node >= 22.
 *
 *     const forge = new Clawdforge('http://127.0.0.1:8800', token);
 *     const session = await forge.createSession();
 *     for await (const text of session.prompt('help').text()) process.stdout.write(text);
 *     forge.close();
 */

import { RunError } from './errors.js';
import { Push, Webhook } from './notifications.js';
import { Rest } from './rest.js';
import { BackgroundRun, RunStream, resultOf } from './runs.js';
import { Session } from './session.js';
import { Watch } from './watch.js';

export { ClawdforgeError, RunError, TurnError } from './errors.js';
export { Files } from './files.js';
export { Push, Webhook } from './notifications.js';
export { BackgroundRun, RunStream } from './runs.js';
export { Session } from './session.js';
export { Turn, textOf } from './turn.js';
export { Watch } from './watch.js';
export { Wire, WireError } from './wire.js';

/** A client for one app. Closing it closes its sockets; sessions and turns go on. */
export class Clawdforge {
	#rest;
	#shared;
	/** @type {Set<Watch>} */
	#watches = new Set();

	/**
	 * @param {string} url the server's address; a path of a site is possible
	 * @param {string | null} token the app's token; null in a page that uses tickets
	 * @param {ClientOptions} [options]
	 */
	constructor(url, token, { retrySecs = 30, giveUpSecs = 300, lingerSecs = 30, credential } = {}) {
		this.#rest = new Rest(url, token, retrySecs);
		this.#shared = {
			rest: this.#rest,
			credential: credential ?? (async () => ({ token: this.#rest.token })),
			giveUpSecs,
			lingerSecs,
			wires: new Set(),
			isClosed: false
		};
		/** The app's webhook. */
		this.webhook = new Webhook(this.#rest);
		/** Its push subscriptions. */
		this.push = new Push(this.#rest);
	}

	/**
	 * Uses another token of the app, for example after the former one was revoked. Open sockets stay open until the
	 * server closes them, and are then opened with this token.
	 * @param {string} token
	 */
	setToken(token) {
		this.#rest.token = token;
	}

	/** Closes all sockets, and ends all calls: with an error of code `closed`. */
	close() {
		this.#shared.isClosed = true;
		this.#rest.close();
		for (const wire of [...this.#shared.wires]) wire.stop();
		for (const watch of [...this.#watches]) watch.close();
	}

	[Symbol.dispose]() {
		this.close();
	}

	/**
	 * Creates a session.
	 * @param {Record<string, any> & {onPermission?: import('./session.js').Handlers['permission'],
	 *   onQuestion?: import('./session.js').Handlers['question']}} [options] the fields of `POST /sessions`, and
	 *   the handlers, with which `permission` and `elicitation` are `ask` by default
	 */
	async createSession({ onPermission, onQuestion, ...fields } = {}) {
		const body = {
			...(onPermission && { permission: 'ask' }),
			...(onQuestion && { elicitation: 'ask' }),
			...fields
		};
		const { session_id: id } = await this.#rest.call('POST', '/sessions', body);
		return this.session(id, { onPermission, onQuestion });
	}

	/**
	 * An existing session. This makes no call.
	 * @param {string} id
	 * @param {{onPermission?: import('./session.js').Handlers['permission'],
	 *   onQuestion?: import('./session.js').Handlers['question']}} [handlers]
	 */
	session(id, { onPermission, onQuestion } = {}) {
		return new Session(this.#shared, id, { permission: onPermission, question: onQuestion });
	}

	/**
	 * The states of the app's sessions, newest first; those that are open by default.
	 * @param {{state?: string, q?: string, fields?: string[], includeClosed?: boolean, page?: number}} [options]
	 * @returns {AsyncGenerator<Record<string, any>, void>}
	 */
	async *sessions({ state, q, fields, includeClosed, page = 100 } = {}) {
		let cursor;
		do {
			const params = { state, q, fields, include_closed: includeClosed || null, limit: page, cursor };
			const reply = await this.#rest.call('GET', '/sessions', undefined, { params });
			yield* reply.sessions;
			cursor = reply.next_cursor;
		} while (cursor);
	}

	/**
	 * The app's list of sessions, and the logs of any number of them, over one socket. It needs a token: a ticket
	 * is for one session.
	 * @param {{fields?: string[]}} [options] fields: of each state in the list; all by default
	 */
	watch({ fields } = {}) {
		const watch = new Watch({
			rest: this.#rest,
			credential: () => this.#shared.credential(null),
			fields,
			giveUpSecs: this.#shared.giveUpSecs,
			onClose: () => this.#watches.delete(watch)
		});
		this.#watches.add(watch);
		return watch;
	}

	/**
	 * Finds what was said: `[{session_id, turn_index, seq, title, snippet}]`. A hit in what a subagent said also has
	 * `subagent`.
	 * @param {string} q
	 * @param {{limit?: number}} [options]
	 * @returns {Promise<Record<string, any>[]>}
	 */
	async search(q, { limit = 20 } = {}) {
		return (await this.#rest.call('GET', '/search', undefined, { params: { q, limit } })).hits;
	}

	/** `[{name, installed, default}]` @returns {Promise<Record<string, any>[]>} */
	async agents() {
		return (await this.#rest.call('GET', '/agents')).agents;
	}

	/**
	 * Tokens and costs by `day`, `session`, `agent` or `model`.
	 * @param {{by?: string, since?: string | number, until?: string | number}} [options]
	 * @returns {Promise<Record<string, any>[]>}
	 */
	async usage({ by = 'day', since, until } = {}) {
		return (await this.#rest.call('GET', '/usage', undefined, { params: { by, from: since, to: until } })).rows;
	}

	/** `{name of a limit: {limit, used, remaining, resets_at}}`; empty without a budget. */
	async budget() {
		return (await this.#rest.call('GET', '/usage')).budget ?? {};
	}

	/**
	 * `[{path, repository}]`: the folders below a path that can be a session's `cwd`.
	 * @param {string} [path] by default the folders that the operator allows
	 * @returns {Promise<Record<string, any>[]>}
	 */
	async folders(path) {
		return (await this.#rest.call('GET', '/folders', undefined, { params: { path } })).folders;
	}

	/** A new, closed session with the entries of an export (NDJSON). */
	async importSession(ndjson) {
		return this.session((await this.#rest.call('POST', '/sessions/import', ndjson)).session_id);
	}

	/**
	 * Uploads a file for prompts and runs. Returns its token.
	 * @param {Blob | string} content
	 * @param {{name?: string, ttlSecs?: number}} [options]
	 * @returns {Promise<string>}
	 */
	async upload(content, { name, ttlSecs } = {}) {
		const form = new FormData();
		const blob = content instanceof Blob ? content : new Blob([content]);
		form.append('file', blob, name ?? /** @type {any} */ (content).name ?? 'file');
		const params = { ttl_secs: ttlSecs };
		return (await this.#rest.call('POST', '/files', form, { params })).file_token;
	}

	// Runs.

	/**
	 * Runs one prompt without a session, and waits for the answer. Throws a {@link RunError} if the run has failed.
	 * @param {string} prompt
	 * @param {Record<string, any> & {key?: string, signal?: AbortSignal}} [options] the fields of `POST /run`; key:
	 *   a repeated call with the same key runs nothing and gets the same response
	 * @returns {Promise<import('./runs.js').RunResult>}
	 */
	async run(prompt, { key, signal, ...fields } = {}) {
		return resultOf(await this.#run({ prompt, ...fields }, key, signal));
	}

	#run(body, key, signal) {
		const headers = key === undefined ? undefined : { 'Idempotency-Key': key };
		return this.#rest.call('POST', '/run', body, { headers, repeat: key !== undefined, kind: RunError, signal });
	}

	/**
	 * Runs one prompt, and receives the agent's updates as they arrive.
	 * @param {string} prompt
	 * @param {Record<string, any>} [fields]
	 */
	runStream(prompt, fields = {}) {
		return new RunStream(this.#rest.stream('/run', { prompt, ...fields }, RunError));
	}

	/**
	 * Starts a run that goes on without its caller.
	 * @param {string} prompt
	 * @param {Record<string, any> & {key?: string}} [options]
	 */
	async runInBackground(prompt, { key, ...fields } = {}) {
		return this.backgroundRun((await this.#run({ prompt, ...fields, background: true }, key)).run_id);
	}

	/** A background run by its id. This makes no call. */
	backgroundRun(id) {
		return new BackgroundRun(this.#rest, id);
	}
}

/**
 * @typedef {object} ClientOptions
 * @property {number} [retrySecs] how long a call that may be repeated is repeated over lost connections
 * @property {number} [giveUpSecs] how long turns and logs wait for a server that cannot be reached
 * @property {number} [lingerSecs] how long a session's socket stays open without a use
 * @property {(sessionId: string) => Promise<object>} [credential] `{token}` or `{ticket}` for each connection
 */
