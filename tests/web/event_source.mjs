// Reads a stream whose connections break with an EventSource, and prints the events (test_sse.py).
// Arguments: the URL of the stream, a token, the bytes after which the first connection breaks.

import { EventSource } from 'eventsource';

const [url, token, limit] = process.argv.slice(2);
let connections = 0;

async function* broken(body) {
	yield new TextEncoder().encode('retry: 10\n\n'); // the default would be seconds
	const reader = body.getReader();
	for (let left = Number(limit); left > 0;) {
		const { value } = await reader.read();
		yield value.subarray(0, left);
		left -= value.length;
	}
}

async function connect(input, init) {
	const headers = { ...init.headers, Authorization: `Bearer ${token}` };
	console.log(JSON.stringify({ connects: headers['Last-Event-ID'] ?? null }));
	const response = await fetch(input, { ...init, headers });
	connections += 1;
	if (connections > 1) return response;
	const { status, headers: told, url: from } = response;
	const body = ReadableStream.from(broken(response.body));
	return { status, headers: told, body, url: from, redirected: false };
}

const source = new EventSource(url, { fetch: connect });
source.addEventListener('message', (event) => {
	const entry = JSON.parse(event.data);
	console.log(JSON.stringify({ id: event.lastEventId, seq: entry.seq, type: entry.type }));
	if (entry.type === 'turn_end') process.exit(); // the first connection is still there
});
