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

/** A run has failed. */
export class RunError extends ClawdforgeError {
	/** The last lines of its program. @returns {string} */
	get stderr() {
		return String(this.body.stderr ?? '');
	}

	/** @returns {string} */
	get stopReason() {
		return String(this.body.stop_reason ?? 'error');
	}
}

/** The codes of responses without the server's body, for example a proxy's. */
const STATUS_CODES = {
	400: 'bad_request',
	401: 'unauthorized',
	402: 'budget_exceeded',
	403: 'forbidden',
	404: 'not_found',
	409: 'conflict',
	410: 'session_closed',
	413: 'payload_too_large',
	429: 'rate_limited',
	502: 'agent_failed',
	503: 'draining',
	504: 'agent_timeout'
};
const RETRYABLE_STATUSES = [408, 429, 500, 502, 503, 504];

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
	const isOfServer = typeof body?.code === 'string';
	const code = isOfServer ? body.code : (STATUS_CODES[status] ?? (status >= 500 ? 'internal' : 'bad_request'));
	const retryable = isOfServer ? RETRYABLE.has(code) : RETRYABLE_STATUSES.includes(status);
	return new Kind(code, body?.error ?? `The server responded with status ${status}.`, {
		retryable: body?.retryable ?? retryable,
		retryAfter: secondsOf(retryAfter),
		status,
		body: body ?? {}
	});
}

// The seconds of a `Retry-After` header, which may also be a date.
function secondsOf(retryAfter) {
	if (!retryAfter) return undefined;
	if (/^\d+$/.test(retryAfter)) return Number(retryAfter);
	const at = Date.parse(retryAfter);
	return Number.isNaN(at) ? undefined : Math.max(0, (at - Date.now()) / 1000);
}

/** The error that an `error` frame describes. */
export function frameError({ code, message, retryable, retry_after_ms: ms, ...fields }) {
	const retryAfter = ms === undefined ? undefined : ms / 1000;
	return new ClawdforgeError(code, message, { retryable: Boolean(retryable), retryAfter, body: fields });
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
