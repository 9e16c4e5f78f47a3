/**
 * storage.js: what the browser remembers for us. The token stays in this tab
 * unless asked otherwise; the rest is convenience. Storage may be full or
 * forbidden: the page works without it.
 */
const read = (area, key) => {
	try {
		return JSON.parse(globalThis[area].getItem(`clawdforge:${key}`));
	} catch {
		return null;
	}
};
const write = (area, key, value) => {
	try {
		if (value == null || value === '' || value.length === 0) globalThis[area].removeItem(`clawdforge:${key}`);
		else globalThis[area].setItem(`clawdforge:${key}`, JSON.stringify(value));
	} catch {
		// full (a large image in the outbox) or forbidden
	}
};

export const storage = {
	token: () => read('sessionStorage', 'token') ?? read('localStorage', 'token'),
	/** null forgets it. */
	saveToken(token, keep) {
		write('sessionStorage', 'token', keep ? null : token);
		write('localStorage', 'token', keep ? token : null);
	},
	preferences: () => read('localStorage', 'preferences') ?? {},
	savePreferences: (changes) => write('localStorage', 'preferences', { ...storage.preferences(), ...changes }),
	draft: (id) => read('sessionStorage', `draft:${id}`) ?? '',
	saveDraft: (id, text) => write('sessionStorage', `draft:${id}`, text),
	outbox: (id) => read('sessionStorage', `outbox:${id}`) ?? [],
	saveOutbox: (id, prompts) => write('sessionStorage', `outbox:${id}`, prompts),
};
