/** What the browser remembers for us. It may be full or forbidden: the page works without it. */
function read(area, key) {
	try {
		return JSON.parse(globalThis[area].getItem(`clawdforge:${key}`));
	} catch {
		return null;
	}
}

function write(area, key, value) {
	try {
		globalThis[area].setItem(`clawdforge:${key}`, JSON.stringify(value));
	} catch {
	}
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
	draft: (id) => read('sessionStorage', `draft:${id}`) ?? '',
	saveDraft: (id, text) => write('sessionStorage', `draft:${id}`, text),
	outbox: (id) => read('sessionStorage', `outbox:${id}`) ?? [],
	saveOutbox: (id, prompts) => write('sessionStorage', `outbox:${id}`, prompts),
};
