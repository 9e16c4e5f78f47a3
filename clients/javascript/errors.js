// The errors of the client. Each has a `code`, so that a program can react to it.

/** A failure that the server reported, or one of the connection to it. */
export class ClawdforgeError extends Error {
	/**
	 * @param {string} code one of the server's codes, or `connection_lost`, `position_unknown` and `closed`
	 * @param {string} message for a person
	 * @param {{retryable?: boolean, retryAfter?: number, status?: number, body?: Record<string, any>}} [details]
	 */
	constructor(code, message, { retryable = false, retryAfter, status, body = {} } = {}) {
		super(message || code);
		this.name = new.target.name;
		this.code = code;
		/** Whether a repeated request may succeed. */
		this.retryable = retryable;
		/** @type {number | undefined} seconds that the server asks to wait */
		this.retryAfter = retryAfter;
		/** @type {number | undefined} the HTTP status */
		this.status = status;
		/** The whole response. */
		this.body = body;
		/** @type {string | undefined} the id under which the server's log has the details */
		this.requestId = body.request_id;
	}
}

/** A turn has ended with an error. `text` is what the agent had said before. */
export class TurnError extends ClawdforgeError {
	/**
	 * @param {{code: string, message: string, retryable?: boolean}} error
	 * @param {number} turnIndex
	 * @param {string} text
	 */
	constructor(error, turnIndex, text) {
		super(error.code, error.message, { retryable: Boolean(error.retryable), body: error });
		this.turnIndex = turnIndex;
		this.text = text;
	}
}

/** A run has failed. `body` has `stderr` and `stop_reason`. */
export class RunError extends ClawdforgeError {}

const RETRYABLE = new Set([
	'request_timeout',
	'queue_full',
	'rate_limited',
	'internal',
	'pool_full',
	'draining',
	'server_restarted',
	'agent_timeout',
	'agent_failed'
]);

/**
 * The error that a response describes.
 * @param {number} status
 * @param {Record<string, any> | null} body
 * @param {string | null} retryAfter
 * @param {typeof ClawdforgeError} [Kind]
 */
export function errorOf(status, body, retryAfter, Kind = ClawdforgeError) {
	const code = body?.code ?? (status >= 500 ? 'internal' : status === 401 ? 'unauthorized' : 'bad_request');
	return new Kind(code, body?.error ?? `The server responded with status ${status}.`, {
		retryable: body?.retryable ?? RETRYABLE.has(code),
		retryAfter: Number(retryAfter) || undefined,
		status,
		body: body ?? {}
	});
}

const REFUSALS = {
	4500: 'unauthorized',
	4501: 'bad_request',
	4502: 'unauthorized',
	4503: 'unauthorized',
	4504: 'rate_limited',
	4505: 'not_found',
	4507: 'not_supported'
};

/**
 * The error of a socket that the server closed for good.
 * @param {number} code the close code, from 4500 on
 * @param {string} [reason]
 */
export function closeError(code, reason) {
	return new ClawdforgeError(REFUSALS[code] ?? 'forbidden', reason || `Closed with ${code}.`);
}
