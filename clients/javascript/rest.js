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
		const response = await this.raw(method, path, body, options);
		const found = await response.json().catch(() => ({}));
		return response.status === 202 ? { ...found, status: 202 } : found;
	}

	/**
	 * @param {string} method
	 * @param {string} path
	 * @param {any} [body]
	 * @param {CallOptions} [options]
	 */
	async raw(method, path, body, { params, headers, repeat = IDEMPOTENT.includes(method), kind, signal } = {}) {
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
				if (response.status < 400) return response;
				const found = await response.json().catch(() => null);
				failure = errorOf(response.status, found, response.headers.get('Retry-After'), kind);
				if (failure.code !== 'draining') throw failure;
			} catch (error) {
				if (error instanceof ClawdforgeError || error.name === 'AbortError') throw error;
				const reason = error.cause?.message ?? error.message;
				failure = new ClawdforgeError('connection_lost', `${this.url}: ${reason}`, { retryable: true });
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
		const response = await this.raw('POST', path, body, { headers, kind });
		let name = 'message';
		let data = [];
		for await (const line of linesOf(response.body)) {
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

/** @param {ReadableStream<Uint8Array>} stream */
async function* linesOf(stream) {
	const decoder = new TextDecoder();
	const reader = stream.getReader();
	let rest = '';
	try {
		for (;;) {
			const { done, value } = await reader.read();
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
