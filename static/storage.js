/**
 * What the browser remembers for the page. Its storage may be full or forbidden: what it does not
 * take is kept in memory, for as long as the page is open.
 */
const PREFIX = 'clawdforge:';
const memory = new Map(); // area and key -> the value that the browser did not take

function read(area, key) {
	if (memory.has(area + key)) return memory.get(area + key);
	try {
		return JSON.parse(globalThis[area].getItem(PREFIX + key));
	} catch {
		return null;
	}
}

function write(area, key, value) {
	memory.delete(area + key);
	try {
		if (value == null) globalThis[area].removeItem(PREFIX + key);
		else globalThis[area].setItem(PREFIX + key, JSON.stringify(value));
	} catch {
		memory.set(area + key, value);
	}
}

/** The keys of this tab that begin with `start`, without it. */
function keysOf(start) {
	let stored = [];
	try {
		stored = Object.keys(globalThis.sessionStorage);
	} catch {
	}
	const own = [...stored, ...[...memory.keys()].map((key) => key.replace('sessionStorage', PREFIX))];
	return [...new Set(own)].filter((key) => key.startsWith(PREFIX + start)).map((key) => key.slice((PREFIX + start).length));
}

export const storage = {
	token: () => read('sessionStorage', 'token') ?? read('localStorage', 'token'),
	kept: (token) => read('localStorage', 'token') === token,
	/** Without `keep`, for this tab: what is kept stays. */
	saveToken(token, keep) {
		write('sessionStorage', 'token', keep ? null : token);
		if (keep !== undefined) write('localStorage', 'token', keep ? token : null);
	},
	preferences: () => read('localStorage', 'preferences') ?? {},
	savePreferences: (changes) => write('localStorage', 'preferences', { ...storage.preferences(), ...changes }),
	/** `part`: 'draft' (the text), 'attached' (its files) or 'choices' (of a new session). */
	draft: (id, part = 'draft') => read('sessionStorage', `${part}:${id}`),
	saveDraft: (id, value, part = 'draft') => write('sessionStorage', `${part}:${id}`, value?.length === 0 ? null : value),
	outbox: (id) => read('sessionStorage', `outbox:${id}`) ?? [],
	saveOutbox: (id, prompts) => write('sessionStorage', `outbox:${id}`, prompts.length ? prompts : null),
	/** Ids of the sessions for which this tab keeps something unsent. */
	unsent: () => [...new Set(['draft:', 'attached:', 'outbox:'].flatMap(keysOf))].filter((id) => read('sessionStorage', `draft:${id}`) || read('sessionStorage', `attached:${id}`) || read('sessionStorage', `outbox:${id}`)),
};
