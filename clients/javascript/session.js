// A session: its turns, its log, and the answers to the requests of its agent.

import { ClawdforgeError, closeError, frameError, TurnError } from './errors.js';
import { Files } from './files.js';
import { randomId } from './ids.js';
import { closed } from './rest.js';
import { Feed, Turn } from './turn.js';
import { Wire } from './wire.js';

const POLICY_MS = 500; // the server answers a request by the session's policy in less time
const MAX_ANSWERS = 3;

/** A session: its turns, its log, its life. {@link Clawdforge} makes it. */
export class Session {
	#shared;
	#path;
	#handlers;
	#wire = null;
	#feeds = new Set();
	#asked = new Map(); // request_id -> {kind, pending, times}: requests that the handlers were given
	#commands = new Map(); // id -> {frame, resolve, reject}: frames that the server has not carried out yet
	#sent = new Map(); // prompt id -> how often it was sent
	#permission = null;
	#lingering;

	/**
	 * @param {Shared} shared
	 * @param {string} id
	 * @param {Handlers} [handlers]
	 */
	constructor(shared, id, handlers = {}) {
		this.id = id;
		this.#shared = shared;
		this.#path = `/sessions/${encodeURIComponent(id)}`;
		this.#handlers = handlers;
		/** The files in the session's folder, what the agent has changed there, and undo. */
		this.files = new Files(shared.rest, this.#path);
	}

	// Turns.

	/**
	 * Sends a prompt, again after a lost connection. It never runs twice.
	 * @param {string | object[]} prompt text or ACP content blocks
	 * @param {{id?: string, files?: string[], steer?: boolean}} [options] id: identifies the prompt in its
	 *   session, also over restarts of this program; files: tokens of {@link Clawdforge.upload}
	 */
	prompt(prompt, { id, files, steer } = {}) {
		const feed = this.#openFeed();
		const wire = this.#connect();
		const sent = wire.prompt(prompt, { ...(id && { id }), files, ...(steer && { steer }) });
		const turn = new Turn(
			sent.id,
			feed,
			sent.accepted
				.then(frame => ({ ...frame, isResent: this.#sent.get(sent.id) > 1 }))
				.catch(error => {
					throw failures.get(wire) ?? error;
				})
				.finally(() => this.#sent.delete(sent.id)),
			index => this.#cancelTurn(index),
			index => {
				if (!id) return null;
				// A prompt that has perhaps run long ago: its entries are in the log.
				this.#closeFeed(feed);
				return this.#follow(0, () => index);
			}
		);
		turn.accepted().then(
			index => {
				feed.turnIndex = index;
				if (feed.endedTurns.has(index)) this.#endFeed(feed);
			},
			error => {
				feed.end(error);
				this.#closeFeed(feed);
			}
		);
		return turn;
	}

	/**
	 * Sends a prompt and waits for the end of its turn.
	 * @param {string | object[]} prompt
	 * @param {{retries?: number, reopen?: boolean, id?: string, files?: string[], steer?: boolean}} [options]
	 *   retries: how often a turn that has failed and may succeed is tried again, as a new turn. With an id, the
	 *   ids of the tries follow from it: a repeated call returns what the first one did. reopen: opens the session
	 *   again if it is closed
	 */
	async ask(prompt, { retries = 0, reopen = false, id, ...options } = {}) {
		for (let tries = 0; ; ) {
			try {
				return await this.prompt(prompt, { ...options, id: id && tries ? `${id}~${tries}` : id }).result();
			} catch (error) {
				if (reopen && error.code === 'session_closed') await this.ensureOpen();
				else if (!(error instanceof TurnError) || !error.retryable || tries >= retries) throw error;
				else tries += 1; // that turn has failed
			}
		}
	}

	/** Cancels the running turn. False if none is running. */
	async cancel() {
		return (await this.#call('POST', '/cancel', {})).cancelled;
	}

	async #cancelTurn(index) {
		try {
			await this.#command({ type: 'cancel', id: randomId(), turn_index: index });
		} catch (error) {
			if (error.code === 'not_found' || error.code === 'session_closed') return false;
			throw error;
		}
		return true;
	}

	// Sends a frame until the server has carried it out.
	async #command(frame) {
		const wire = this.#connect();
		const feed = this.#openFeed(new Unread());
		const done = new Promise((resolve, reject) => this.#commands.set(frame.id, { frame, resolve, reject }));
		try {
			this.#sendCommand(wire, frame);
			await done;
		} finally {
			this.#commands.delete(frame.id);
			this.#closeFeed(feed);
		}
	}

	#sendCommand(wire, frame) {
		wire.send(frame);
		wire.send({ type: 'ping', id: frame.id }); // its pong follows the error of the frame, if it has one
	}

	/**
	 * Changes a queued prompt, or moves it in front of another one. Returns the queue.
	 * @param {number} turnIndex
	 * @param {{prompt?: string | object[], before?: number}} changes
	 */
	async editQueued(turnIndex, { prompt, before }) {
		return (await this.#call('PATCH', `/queue/${turnIndex}`, { prompt, before })).queued;
	}

	/** Withdraws a queued prompt: the agent never receives it. Returns the queue. */
	async withdraw(turnIndex) {
		return (await this.#call('DELETE', `/queue/${turnIndex}`, undefined, { repeat: false })).queued;
	}

	// The log.

	/**
	 * Follows the log: the entries with a seq greater than `after`, each once and in order, until the session
	 * is closed. 0 for the whole log, null for what happens from now on.
	 * @param {number | null} [after]
	 * @returns {AsyncGenerator<import('./turn.js').Entry, void>}
	 */
	async *entries(after = 0) {
		const feed = this.#follow(after);
		try {
			for (let entry = await feed.next(); entry; entry = await feed.next()) yield entry;
		} finally {
			feed.stop();
		}
	}

	/**
	 * The entries that are in the log now.
	 * @param {number} [after]
	 * @param {number} [limit] all by default
	 * @returns {Promise<import('./turn.js').Entry[]>}
	 */
	async log(after = 0, limit = Infinity) {
		const found = [];
		while (found.length < limit) {
			const params = { after, limit: Math.min(1000, limit - found.length) };
			const page = await this.#call('GET', '/events', undefined, { params });
			found.push(...page.entries);
			if (!page.has_more) break;
			after = found.at(-1).seq;
		}
		return found;
	}

	// A socket of its own, for the entries up to the end of a turn if there is one; null means all turns. It is closed
	// while the reader is slow.
	#follow(after, turnIndex = () => null) {
		const feed = new Feed();
		let wire = null;
		const leave = () => {
			const left = wire;
			wire = null;
			left?.stop();
		};
		const connect = position => {
			const mine = this.#newWire(position, {
				entry: entry => {
					if (wire !== mine || isOfOther(turnIndex(), entry)) return;
					feed.push(entry);
					if (entry.type === 'turn_end' && entry.turn_index === turnIndex()) feed.stop();
					else if (feed.isFull) {
						leave();
						feed.resume = () => connect(entry.seq);
					}
				},
				reset: () => {
					feed.end(positionUnknown());
					leave();
				},
				ended: error => wire === mine && feed.end(error)
			});
			wire = mine;
			feed.resume = () => {};
			wire.start();
		};
		feed.stop = leave;
		connect(after);
		return feed;
	}

	// Settings.

	/** Before the next prompt, whose turn fails if the agent refuses. */
	setMode = mode => this.#set({ type: 'set_mode', mode });
	setModel = model => this.#set({ type: 'set_model', model });
	setConfigOption = (key, value) => this.#set({ type: 'set_config_option', key, value });

	async #set(frame) {
		const wire = this.#connect();
		const feed = this.#openFeed(new Unread());
		try {
			while (!wire.send(frame)) await this.#changed(wire);
		} finally {
			this.#closeFeed(feed);
		}
	}

	async #changed(wire) {
		if (wire.status.state === 'stopped' || this.#wire !== wire) throw closed();
		await new Promise(resolve => setTimeout(resolve, 50));
	}

	/** Changes `meta`, `permission`, `elicitation`, `ttl_secs` and so on. Returns the state. */
	async update(fields) {
		const state = await this.#call('PATCH', '', fields);
		this.#permission = state.permission;
		return state;
	}

	// The agent's requests, for programs that use no handlers.

	/** Answers a permission request with one of its options; null cancels it. */
	answerPermission = (requestId, optionId) =>
		this.#call(
			'POST',
			`/permissions/${encodeURIComponent(requestId)}`,
			optionId == null ? { outcome: 'cancelled' } : { option_id: optionId }
		);
	/** Answers a question: action is `accept`, `decline` or `cancel`. */
	answerQuestion = (requestId, action, content) =>
		this.#call('POST', `/elicitations/${encodeURIComponent(requestId)}`, { action, content });

	// Life.

	state = () => this.#call('GET', '');
	markRead = async seq => (await this.#call('POST', '/read', { seq }, { repeat: true })).unread;
	/** Opens a closed session again. Returns the state. */
	reopen = () => this.#call('POST', '/reopen', {});
	/** Opens the session again if it is closed. Returns the state. */
	ensureOpen = () =>
		this.reopen().catch(error => {
			if (error.code !== 'conflict') throw error;
			return this.state();
		});
	ticket = async () => (await this.#call('POST', '/ticket', {})).ticket;
	/**
	 * A link with which anybody can read the session: `{share_id, url, …}`.
	 * @param {{expiresIn?: number, label?: string}} [options]
	 */
	share = ({ expiresIn, label } = {}) => this.#call('POST', '/shares', { expires_in: expiresIn, label });
	shares = async () => (await this.#call('GET', '/shares')).shares;
	revokeShare = id => this.#call('DELETE', `/shares/${encodeURIComponent(id)}`);

	/**
	 * A new session that continues from the end of a turn, by default of the last one.
	 * @param {Record<string, any> & {turnIndex?: number}} [options] and the fields of `POST /sessions`
	 */
	async fork({ turnIndex, ...fields } = {}) {
		const { session_id: id } = await this.#call('POST', '/fork', { turn_index: turnIndex, ...fields });
		return new Session(this.#shared, id, this.#handlers);
	}

	/** The session as `ndjson`, `markdown` or `html`. */
	async export(format = 'ndjson') {
		return this.#shared.rest.raw('GET', `${this.#path}/export`, undefined, { params: { format }, read: textOfBody });
	}

	/** Closes the session on the server; with purge it is also deleted now. */
	async close({ purge = false } = {}) {
		await this.#call('DELETE', '', undefined, { params: { purge: purge || null } });
		this.detach();
	}

	/** Closes this object's socket. The session, its turns and its agent go on. */
	detach() {
		this.#end(closed());
	}

	#call(method, path, body, options) {
		return this.#shared.rest.call(method, this.#path + path, body, options);
	}

	// The socket.

	#openFeed(feed = new Feed()) {
		clearTimeout(this.#lingering);
		this.#feeds.add(feed);
		return feed;
	}

	#endFeed(feed) {
		feed.end();
		this.#closeFeed(feed);
	}

	#closeFeed(feed) {
		this.#feeds.delete(feed);
		if (!this.#wire || this.#feeds.size || this.#handlers.permission || this.#handlers.question) return;
		clearTimeout(this.#lingering);
		this.#lingering = setTimeout(() => this.#feeds.size || this.detach(), this.#shared.lingerSecs * 1000);
		this.#lingering.unref?.();
	}

	#connect() {
		if (!this.#wire) {
			const wire = this.#newWire(null, {
				ready: frame => {
					this.#permission = frame.permission;
					for (const pending of frame.pending_permissions ?? []) this.#ask(pending, 'permission');
					for (const pending of frame.pending_elicitations ?? []) this.#ask(pending, 'question');
					for (const command of this.#commands.values()) this.#sendCommand(wire, command.frame);
				},
				entry: entry => this.#received(entry),
				reset: () => this.#end(positionUnknown()),
				error: frame => this.#refused(frame),
				frame: (direction, frame) => {
					if (frame.type === 'pong') this.#commands.get(frame.id)?.resolve();
					else if (direction === 'up' && frame.type === 'prompt')
						this.#sent.set(frame.id, (this.#sent.get(frame.id) ?? 0) + 1);
				},
				ended: error => this.#wire === wire && this.#end(error)
			});
			this.#wire = wire;
			wire.start();
		}
		return this.#wire;
	}

	#newWire(after, { ended, ...on }) {
		const { rest, credential, giveUpSecs, wires } = this.#shared;
		let givingUp;
		let token;
		const wire = new Wire({
			url: `${rest.url.replace(/^http/, 'ws')}${this.#path}/ws`,
			credential: () => {
				if (this.#shared.isClosed) queueMicrotask(() => wire.stop());
				token = rest.token;
				return credential(this.id);
			},
			after,
			on: {
				...on,
				closed: code => (rest.hasTokenFor(code, token) ? 'resume' : undefined),
				status: status => {
					if (status.state === 'live' || status.state === 'stopped' || status.state === 'idle') {
						clearTimeout(givingUp);
						givingUp = undefined;
					} else if (givingUp === undefined) {
						givingUp = setTimeout(() => {
							const why = status.reason || 'the server cannot be reached';
							const lost = new ClawdforgeError('connection_lost', `${rest.url}: ${why}`, { retryable: true });
							failures.set(wire, lost);
							ended(lost);
							wire.stop();
						}, giveUpSecs * 1000);
					}
					if (status.state === 'idle' || status.state === 'stopped') wires.delete(wire);
					if (status.state === 'stopped') {
						const isClosed = new ClawdforgeError('session_closed', 'The session is closed.');
						failures.set(wire, stoppedError(status) ?? isClosed);
						ended(stoppedError(status));
					}
					if (status.state === 'idle') ended(closed());
				}
			}
		});
		wires.add(wire);
		return wire;
	}

	#end(error) {
		const wire = this.#wire;
		this.#wire = null;
		clearTimeout(this.#lingering);
		for (const feed of this.#feeds) feed.end(error);
		this.#feeds.clear();
		for (const { reject } of this.#commands.values())
			reject(error ?? new ClawdforgeError('session_closed', 'The session is closed.'));
		this.#asked.clear();
		wire?.stop();
	}

	#received(entry) {
		for (const feed of [...this.#feeds]) {
			if (isOfOther(feed.turnIndex, entry)) continue;
			feed.push(entry);
			if (!feed.isFull) continue;
			this.#closeFeed(feed);
			feed.continueWith(after => this.#follow(after, () => feed.turnIndex));
		}
		if (entry.type === 'turn_end') {
			for (const feed of [...this.#feeds]) {
				if (feed.turnIndex === entry.turn_index) this.#endFeed(feed);
				else if (feed.turnIndex === null) feed.endedTurns.add(entry.turn_index);
			}
		}
		if (entry.type === 'permission_request') this.#ask(entry, 'permission');
		if (entry.type === 'elicitation_request') this.#ask(entry, 'question');
		if (['permission_resolved', 'elicitation_resolved'].includes(entry.type)) this.#asked.delete(entry.request_id);
	}

	// Answers of the handlers.

	async #ask(pending, kind, problem = null) {
		const handler = this.#handlers[kind];
		const { request_id: requestId } = pending;
		if (!handler || (this.#asked.has(requestId) && !problem)) return;
		const asked = { kind, pending, times: (this.#asked.get(requestId)?.times ?? 0) + 1 };
		this.#asked.set(requestId, asked);
		if (kind === 'permission' && this.#permission !== 'ask')
			await new Promise(resolve => setTimeout(resolve, POLICY_MS));
		if (!this.#asked.has(requestId)) return;
		let answer = null;
		try {
			answer = asked.times > MAX_ANSWERS ? null : await handler(requestOf(pending, kind, problem));
		} catch (error) {
			console.error('The handler has failed; the request is cancelled.', error);
		}
		if (!this.#asked.has(requestId)) return; // another client was faster
		this.#wire?.answer(requestId, kind === 'permission' ? optionOf(pending, answer) : contentOf(answer));
	}

	#refused(frame) {
		const asked = this.#asked.get(frame.id);
		const command = this.#commands.get(frame.id);
		if (command) return command.reject(frameError(frame));
		if (asked && frame.code === 'bad_request') this.#ask(asked.pending, asked.kind, frame);
		else if (!asked) console.warn(`clawdforge: ${frame.message} (${frame.code})`);
	}
}

function requestOf(pending, kind, problem) {
	const { request_id: requestId, turn_index: turnIndex, request, expires_at: expiresAt } = pending;
	const common = { requestId, turnIndex, expiresAt, request, problem: problem?.message ?? null };
	return kind === 'permission'
		? {
				...common,
				title: request.toolCall?.title ?? '',
				toolCall: request.toolCall,
				options: request.options,
				allow: () => firstOption(request, ['allow_once', 'allow_always']),
				allowAlways: () => firstOption(request, ['allow_always', 'allow_once']),
				reject: () => firstOption(request, ['reject_once', 'reject_always'])
			}
		: {
				...common,
				message: request.message,
				mode: request.mode ?? 'form',
				schema: request.requestedSchema ?? {},
				url: request.url ?? null,
				field: problem?.field ?? null
			};
}

// The id of the first option of one of the kinds; null, which cancels, if the agent offers none.
function firstOption(request, kinds) {
	const found = kinds.map(kind => request.options.find(one => one.kind === kind)).find(Boolean);
	return found?.optionId ?? null;
}

function optionOf({ request }, answer) {
	if (typeof answer !== 'boolean') return answer ?? null;
	return firstOption(request, answer ? ['allow_once', 'allow_always'] : ['reject_once', 'reject_always']);
}

function contentOf(answer) {
	if (answer == null) return { action: 'cancel' };
	if (answer === false) return { action: 'decline' };
	return answer === true ? { action: 'accept' } : { action: 'accept', content: answer };
}

/** Whether an entry is not of the turn that a feed is for; null if that is for all, or not known. */
const isOfOther = (turnIndex, entry) => turnIndex != null && entry.turn_index !== turnIndex;

/** A feed that only keeps the socket open. */
class Unread extends Feed {
	/** @override */
	push() {}
}

/** Why a wire has ended, if that is not what its prompts report. */
const failures = new WeakMap();

const positionUnknown = () =>
	new ClawdforgeError('position_unknown', "The server's log went back: read it again from its start.");

// Null for the end of a closed session's log.
function stoppedError({ code, reason }) {
	return code === 4508 ? null : closeError(code, reason);
}

/** @param {Response} response */
const textOfBody = response => response.text();

/**
 * @typedef {object} Handlers
 * @property {(request: any) => Promise<string | boolean | null> | string | boolean | null} [permission] returns an
 *   option's id; true to allow once, false to reject once; null to cancel
 * @property {(question: any) => Promise<object | boolean | null> | object | boolean | null} [question] returns the
 *   content of a form; true to accept a link; false to decline; null to cancel
 *
 * @typedef {object} Shared
 * @property {import('./rest.js').Rest} rest
 * @property {(sessionId: string) => Promise<object>} credential
 * @property {number} giveUpSecs
 * @property {number} lingerSecs
 * @property {Set<Wire>} wires
 * @property {boolean} isClosed
 */
