// REST calls: errors, repeats, and streams of server-sent events.

import { ClawdforgeError, errorOf } from './errors.js';
import { backoff } from './wire.js';

const IDEMPOTENT = ['GET', 'PUT', 'DELETE', 'PATCH'];
const REFUSED = ['draining', 'rate_limited']; // the server has done nothing, and accepts the same call later
const PROXY_STATUSES = [502, 503, 504]; // with which a proxy answers while its server restarts
// Node's codes of connections that could not be made, and have carried nothing.
const UNSENT = ['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'UND_ERR_CONNECT_TIMEOUT'];
const OTHER_TOKEN_CODES = [4500, 4503]; // the credential is refused, or was revoked

/** The REST calls. */
export class Rest {
	#closing = new AbortController();

	/**
	 * @param {string} url
	 * @param {string | null} token
	 * @param {number} retrySecs how long a call that may be repeated is repeated over lost connections
	 */
	constructor(url, token, retrySecs) {
		this.url = url.replace(/\/+$/, '');
		this.token = token;
		this.retrySecs = retrySecs;
	}

	/** Ends all calls. They fail with `closed`, and so do later ones. */
	close() {
		this.#closing.abort();
	}

	/**
	 * Whether there is another token than the one with which a socket was closed that it may accept.
	 * @param {number} code the close code
	 * @param {string | null} used
	 */
	hasTokenFor(code, used) {
		return OTHER_TOKEN_CODES.includes(code) && this.token !== used;
	}

	/**
	 * Makes a call, and returns the response's object.
	 * @param {string} method
	 * @param {string} path
	 * @param {any} [body]
	 * @param {CallOptions} [options]
	 * @returns {Promise<any>}
	 */
	async call(method, path, body, options) {
		return this.raw(method, path, body, { ...options, read: parsed });
	}

	/**
	 * Makes a call, and returns what `read` returns: it is part of the call, which is repeated if it fails.
	 * @param {string} method
	 * @param {string} path
	 * @param {any} body
	 * @param {CallOptions & {read: (response: Response) => Promise<any>}} options
	 */
	async raw(method, path, body, { read, params, headers, repeat = IDEMPOTENT.includes(method), kind, signal }) {
		const until = Date.now() + this.retrySecs * 1000;
		for (let attempt = 0; ; attempt += 1) {
			const { token } = this;
			const ended = this.#closing.signal;
			let failure;
			if (ended.aborted) throw closed();
			try {
				const response = await fetch(this.url + path + queryOf(params), {
					method,
					headers: { Authorization: `Bearer ${token}`, ...headers },
					body: encoded(body),
					cache: 'no-store',
					signal: signal ? AbortSignal.any([signal, ended]) : ended
				});
				if (response.status < 400) return await read(response);
				const found = await response.json().catch(() => null);
				failure = errorOf(response.status, found, response.headers.get('Retry-After'), kind);
				if (response.status === 401 && this.token !== token) continue;
				const isOfProxy = PROXY_STATUSES.includes(response.status) && !found?.code;
				if (isOfProxy ? !repeat : !REFUSED.includes(failure.code)) throw failure;
			} catch (error) {
				if (ended.aborted) throw closed();
				if (error instanceof ClawdforgeError || error.name === 'AbortError') throw error;
				failure = lostConnection(this.url, error);
				if (!repeat && !UNSENT.includes(error.cause?.code)) throw failure;
			}
			const wait = backoff(attempt) + (failure.retryAfter ?? 0) * 1000;
			if (Date.now() + wait > until) throw failure;
			await new Promise(resolve => setTimeout(resolve, wait));
		}
	}

	/**
	 * The server-sent events of a POST.
	 * @param {string} path
	 * @param {any} body
	 * @param {typeof ClawdforgeError} kind
	 * @returns {AsyncGenerator<{name: string, data: any}, void>}
	 */
	async *stream(path, body, kind) {
		const headers = { Accept: 'text/event-stream' };
		const stream = await this.raw('POST', path, body, { headers, kind, read: async response => response.body });
		let name = 'message';
		let data = [];
		for await (const line of linesOf(stream, this.url)) {
			if (line.startsWith('event:')) name = line.slice(6).trim();
			else if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''));
			else if (!line) {
				if (data.length) yield { name, data: JSON.parse(data.join('\n')) };
				name = 'message';
				data = [];
			}
		}
	}
}

/** The object in a body; an empty one for anything else, such as a proxy's page. */
async function parsed(response) {
	const text = await response.text();
	let found = {};
	try {
		found = JSON.parse(text);
	} catch {}
	if (!found || typeof found !== 'object') found = {};
	return response.status === 202 ? { ...found, status: 202 } : found;
}

export const closed = () => new ClawdforgeError('closed', 'The client was closed.');

function lostConnection(url, error) {
	if (error.name === 'AbortError') return closed();
	const reason = error.cause?.message ?? error.message;
	return new ClawdforgeError('connection_lost', `${url}: ${reason}`, { retryable: true });
}

/**
 * @param {ReadableStream<Uint8Array>} stream
 * @param {string} url for the error if the stream is cut off
 */
async function* linesOf(stream, url) {
	const decoder = new TextDecoder();
	const reader = stream.getReader();
	let rest = '';
	try {
		for (;;) {
			const { done, value } = await reader.read().catch(error => {
				throw lostConnection(url, error);
			});
			if (done) return;
			const lines = (rest + decoder.decode(value, { stream: true })).split('\n');
			rest = lines.pop();
			for (const line of lines) yield line.replace(/\r$/, '');
		}
	} finally {
		reader.cancel().catch(() => {});
	}
}

function encoded(body) {
	if (body === undefined || typeof body === 'string' || body instanceof FormData || body instanceof Blob) return body;
	if (body instanceof ArrayBuffer || ArrayBuffer.isView(body)) return body;
	return JSON.stringify(body);
}

function queryOf(params = {}) {
	const found = Object.entries(params).filter(([, value]) => value != null);
	return found.length ? `?${new URLSearchParams(found.map(([name, value]) => [name, String(value)]))}` : '';
}

/**
 * @typedef {object} CallOptions
 * @property {Record<string, any>} [params]
 * @property {Record<string, string>} [headers]
 * @property {boolean} [repeat] whether the call may be repeated after a lost connection
 * @property {typeof ClawdforgeError} [kind]
 * @property {AbortSignal} [signal]
 */
