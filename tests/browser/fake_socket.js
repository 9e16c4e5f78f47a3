// Takes the place of WebSocket before the page runs: a session's server that says what the test wants.
// In `window.fake`: log (entries that `ready` counts), state (more fields of `ready`), feed(entries), sent.
/** @type {any} */ (window).fake = { log: [], state: {}, sent: [], seq: 0 };
/** @type {any} */ (window).WebSocket = class {
	onopen;
	onmessage;
	id;
	constructor(url) {
		[, this.id] = url.match(/sessions\/([^/]*)\/ws/) ?? [];
		if (!this.id) return; // of the list, which stays as it was read
		fake.socket = this;
		setTimeout(() => this.onopen());
	}

	send(text) {
		const frame = JSON.parse(text);
		fake.sent.push(frame);
		if (frame.type !== 'auth') return;
		// Without heartbeats the page would take a slow test for a broken connection.
		setInterval(() => this.tell({ type: 'heartbeat', head: fake.seq }), 5000);
		const { log, state } = fake;
		this.tell({
			type: 'ready',
			protocol: 1,
			session_id: this.id,
			agent: 'mock',
			state: 'idle',
			pending_permissions: [],
			...state,
			head: fake.seq || log.length
		});
		if (!fake.seq) fake.feed(log);
	}

	tell(frame) {
		this.onmessage({ data: JSON.stringify(frame) });
	}

	close() {}
};
fake.feed = entries => {
	for (const entry of entries) fake.socket.tell({ ...entry, seq: (fake.seq += 1) });
};
