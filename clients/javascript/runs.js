// Runs: one prompt and one answer, without a session.

import { ClawdforgeError, errorOf, RunError } from './errors.js';

const POLL_MS = [100, 200, 500, 1000, 2000];

/**
 * @typedef {object} RunResult
 * @property {any} result JSON if the answer was JSON, else the text
 * @property {number} durationMs
 * @property {string} stopReason
 * @property {Record<string, any> | null} usage null unless `include` has asked for it
 * @property {string | null} sessionId null unless `include` has asked for it
 */

/** @returns {RunResult} */
export function resultOf(body) {
	return {
		result: body.result,
		durationMs: body.duration_ms ?? 0,
		stopReason: body.stop_reason ?? '',
		usage: body.usage ?? null,
		sessionId: body.session_id ?? null
	};
}

/** A run whose updates arrive while it is in progress: `for await (const update of stream)`. */
export class RunStream {
	#events;
	#body = null;

	/** @param {AsyncGenerator<{name: string, data: any}, void>} events */
	constructor(events) {
		this.#events = events;
	}

	/** @returns {AsyncGenerator<Record<string, any>, void>} */
	async *[Symbol.asyncIterator]() {
		while (!this.#body) {
			const { done, value } = await this.#events.next();
			if (done) throw new ClawdforgeError('connection_lost', "The run's stream was cut off.", { retryable: true });
			if (value.name === 'result') this.#body = value.data;
			else yield value.data;
		}
	}

	/**
	 * Waits for the end of the run. Throws a {@link RunError} if it has failed.
	 * @returns {Promise<RunResult>}
	 */
	async result() {
		for await (const _ of this);
		if (!this.#body.ok) throw errorOf(502, this.#body, null, RunError);
		return resultOf(this.#body);
	}

	/** Ends the run, if it is still in progress. */
	async close() {
		await this.#events.return();
	}
}

/** A run that goes on without its caller, also while the caller restarts. */
export class BackgroundRun {
	#rest;
	#path;

	/**
	 * @param {import('./rest.js').Rest} rest
	 * @param {string} id
	 */
	constructor(rest, id) {
		/** With it `Clawdforge.backgroundRun` finds the run again, for an hour. */
		this.id = id;
		this.#rest = rest;
		this.#path = `/run/${encodeURIComponent(id)}`;
	}

	/**
	 * The result, or null while the run is in progress. Throws a {@link RunError} if it has failed.
	 * @returns {Promise<RunResult | null>}
	 */
	async poll() {
		const reply = await this.#rest.call('GET', this.#path, undefined, { kind: RunError });
		return reply.status === 202 ? null : resultOf(reply);
	}

	/**
	 * Waits for the end of the run.
	 * @returns {Promise<RunResult>}
	 */
	async result() {
		for (let attempt = 0; ; attempt += 1) {
			const found = await this.poll();
			if (found) return found;
			const wait = POLL_MS[Math.min(attempt, POLL_MS.length - 1)];
			await new Promise(resolve => setTimeout(resolve, wait));
		}
	}

	/** Ends the run, and deletes its response. */
	async end() {
		try {
			await this.#rest.call('DELETE', this.#path);
		} catch (error) {
			if (error.code !== 'not_found') throw error;
		}
	}
}
