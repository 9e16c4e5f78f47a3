/** A random id: crypto.randomUUID is for secure origins only. */
export function randomId() {
	return Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, '0')).join('');
}
