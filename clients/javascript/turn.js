// One prompt and what the agent does with it.

import { ClawdforgeError, TurnError } from './errors.js';

/**
 * The text of an entry that is a piece of the agent's message, else an empty string.
 * @param {Entry} entry
 * @returns {string}
 */
export function textOf(entry) {
	const update = entry.subagent ? undefined : entry.event?.params?.update;
	const text = update?.sessionUpdate === 'agent_message_chunk' ? update.content?.text : '';
	return typeof text === 'string' ? text : '';
}

const MAX_WAITING = 2000; // entries that wait for a slow reader; the others come from the server's log

/** Entries that wait for one reader. */
export class Feed {
	#entries = [];
	#source = null;
	#error = null;
	#ended = false;
	/** @type {(value?: any) => void} */
	#wake = () => {};
	/** @type {number | null} of a turn's feed, once it is known */
	turnIndex = null;
	/** Turns that have ended while the index was not known. @type {Set<number>} */
	endedTurns = new Set();
	stop = () => {};

	/** Called before the reader waits for entries. */
	resume = () => {};

	get isFull() {
		return this.#entries.length > MAX_WAITING;
	}

	/** @param {Entry} entry */
	push(entry) {
		this.#entries.push(entry);
		this.#wake();
	}

	/**
	 * Continues with the entries of another feed.
	 * @param {(after: number) => Feed} follow returns the feed of the entries after a seq
	 */
	continueWith(follow) {
		this.#source = follow(this.#entries[0].seq - 1);
		this.#entries = [];
		this.stop = () => this.#source.stop();
		this.#wake();
	}

	end(error = null) {
		this.#error ??= error;
		this.#ended = true;
		this.#wake();
	}

	/** @returns {Promise<Entry | null>} null at the end */
	async next() {
		while (!this.#entries.length) {
			if (this.#source) return this.#source.next();
			if (this.#error) throw this.#error;
			if (this.#ended) return null;
			this.resume();
			await new Promise(resolve => {
				this.#wake = resolve;
			});
		}
		return this.#entries.shift();
	}
}

/**
 * One prompt and what the agent does with it. `for await (const entry of turn)` yields its entries up to its
 * `turn_end`, each once. A second loop continues where the first one has stopped.
 */
export class Turn {
	/** @type {number | null} */
	index = null;
	/** Whether the server had the prompt already. */
	duplicate = false;
	/** Whether the prompt was added to a turn that was running. */
	steered = false;
	#feed;
	#accepted;
	#cancel;
	#texts = [];
	#end = null;

	/**
	 * @param {string} id
	 * @param {Feed} feed
	 * @param {Promise<{turn_index: number, duplicate?: boolean, steered?: boolean, isResent: boolean}>} accepted
	 * @param {(index: number) => Promise<boolean>} cancel
	 * @param {(index: number) => Feed | null} refeed the entries of a prompt that the server had already
	 */
	constructor(id, feed, accepted, cancel, refeed) {
		/** The prompt's id. A prompt with the same id never runs twice in its session. */
		this.id = id;
		this.#feed = feed;
		this.#cancel = cancel;
		this.#accepted = accepted.then(
			frame => {
				this.index = frame.turn_index;
				this.duplicate = Boolean(frame.duplicate) && !frame.isResent;
				this.steered = Boolean(frame.steered);
				if (frame.duplicate) this.#feed = refeed(frame.turn_index) ?? this.#feed;
				return frame.turn_index;
			},
			error => {
				throw asError(error);
			}
		);
		this.#accepted.catch(() => {});
	}

	/** Waits until the server has stored the prompt. Returns the turn's index. */
	accepted() {
		return this.#accepted;
	}

	async #next() {
		const index = await this.#accepted;
		while (!this.#end) {
			const entry = await this.#feed.next();
			if (!entry) throw new ClawdforgeError('session_closed', 'The session was closed.');
			if (entry.turn_index !== index) continue;
			this.#texts.push(textOf(entry));
			if (entry.type === 'turn_end') {
				this.#end = entry;
				this.#feed.stop();
			}
			return entry;
		}
		return null;
	}

	/** @returns {AsyncGenerator<Entry, void>} */
	async *[Symbol.asyncIterator]() {
		for (let entry = await this.#next(); entry; entry = await this.#next()) yield entry;
	}

	/**
	 * The agent's message, piece by piece. Throws a {@link TurnError} if the turn fails.
	 * @returns {AsyncGenerator<string, void>}
	 */
	async *text() {
		for await (const entry of this) {
			const text = textOf(entry);
			if (text) yield text;
		}
		await this.result();
	}

	/**
	 * Waits for the end of the turn. Throws a {@link TurnError} if it fails.
	 * @returns {Promise<TurnResult>}
	 */
	async result() {
		while (!this.#end) await this.#next();
		const text = this.#texts.join('');
		if (this.#end.error) throw new TurnError(this.#end.error, this.index, text);
		return {
			turnIndex: this.index,
			text,
			stopReason: this.#end.stop_reason,
			durationMs: this.#end.duration_ms,
			usage: this.#end.usage ?? null,
			withdrawn: Boolean(this.#end.withdrawn)
		};
	}

	/** Cancels the turn, or withdraws its prompt from the queue. False if it has ended. */
	async cancel() {
		return this.#cancel(await this.#accepted);
	}
}

/** The client's error for one of the socket. */
export function asError(error) {
	if (error instanceof ClawdforgeError) return error;
	const code = error.code === 'stopped' ? 'closed' : error.code;
	return new ClawdforgeError(code ?? 'internal', error.message, { retryable: Boolean(error.retryable) });
}

/**
 * @typedef {{type: string, seq: number, ts: number, turn_index: number, event?: any, [field: string]: any}} Entry
 * @typedef {object} TurnResult
 * @property {number} turnIndex
 * @property {string} text everything that the agent said
 * @property {string} stopReason
 * @property {number} durationMs
 * @property {Record<string, any> | null} usage
 * @property {boolean} withdrawn whether it was cancelled before the agent received its prompt
 */
