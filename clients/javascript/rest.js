// REST calls: errors, repeats, and streams of server-sent events.

import { ClawdforgeError, errorOf } from './errors.js';
import { backoff } from './wire.js';

const IDEMPOTENT = ['GET', 'PUT', 'DELETE', 'PATCH'];

/** The REST calls. */
export class Rest {
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
			let failure;
			try {
				const response = await fetch(this.url + path + queryOf(params), {
					method,
					headers: { Authorization: `Bearer ${this.token}`, ...headers },
					body: encoded(body),
					cache: 'no-store',
					signal
				});
				if (response.status < 400) return await read(response);
				const found = await response.json().catch(() => null);
				failure = errorOf(response.status, found, response.headers.get('Retry-After'), kind);
				if (failure.code !== 'draining') throw failure;
			} catch (error) {
				if (error instanceof ClawdforgeError || error.name === 'AbortError') throw error;
				failure = lostConnection(this.url, error);
				// A refused connection has carried nothing.
				if (!repeat && error.cause?.code !== 'ECONNREFUSED') throw failure;
			}
			const wait = Math.max(backoff(attempt), (failure.retryAfter ?? 0) * 1000);
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
	return response.status === 202 ? { ...found, status: 202 } : found;
}

function lostConnection(url, error) {
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
