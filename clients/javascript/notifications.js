// Notifications without a socket: the app's webhook, and the push subscriptions of browsers.

/** The app's webhook. There is one; see docs/howto/webhooks.md. */
export class Webhook {
	#rest;

	/** @param {import('./rest.js').Rest} rest */
	constructor(rest) {
		this.#rest = rest;
	}

	/**
	 * Sets the webhook, in place of an earlier one. Returns `{url, events, created_at}`, and `secret` if it is new:
	 * it is not shown again.
	 * @param {string} url
	 * @param {{events?: string[], secret?: string}} [options] events: by default all; secret: the key of the
	 *   signatures, by default a new one
	 */
	set = (url, { events, secret } = {}) =>
		this.#rest.call('PUT', '/webhook', { url, events, secret }, { repeat: secret !== undefined });
	/** `{url, events, pending, last_success_at, failures, …}`; `not_found` without one. */
	state = () => this.#rest.call('GET', '/webhook');
	/** Deletes the webhook, with the deliveries that wait. */
	delete = () => this.#rest.call('DELETE', '/webhook', undefined, { repeat: false });
}

/** The browsers that are notified by Web Push; see docs/howto/push.md. */
export class Push {
	#rest;

	/** @param {import('./rest.js').Rest} rest */
	constructor(rest) {
		this.#rest = rest;
	}

	/** The server's public key: the browser's `applicationServerKey`. @returns {Promise<string>} */
	key = async () => (await this.#rest.call('GET', '/push/key')).key;
	/**
	 * Notifies a browser. Returns the id of the subscription, which the same browser keeps.
	 * @param {any} subscription the browser's PushSubscription, or its `toJSON()`
	 * @param {{events?: string[]}} [options] events: by default all but `session_closed`
	 * @returns {Promise<string>}
	 */
	subscribe = async (subscription, { events } = {}) => {
		const { endpoint, keys } = subscription.toJSON?.() ?? subscription;
		const body = { endpoint, keys, events };
		return (await this.#rest.call('POST', '/push/subscriptions', body, { repeat: true })).id;
	};
	/** `[{id, service, events, created_at}]`, the oldest first. @returns {Promise<Record<string, any>[]>} */
	subscriptions = async () => (await this.#rest.call('GET', '/push/subscriptions')).subscriptions;
	/** Notifies a browser no longer. */
	unsubscribe = id => this.#rest.call('DELETE', `/push/subscriptions/${encodeURIComponent(id)}`);
}
