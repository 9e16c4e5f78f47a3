// The files of a session's folder.

/** @param {Response} response */
const textOfBody = response => response.text();
/** @param {Response} response */
const blobOfBody = response => response.blob();

/** The files of a session's folder. Paths are relative to it. */
export class Files {
	#rest;
	#path;

	/**
	 * @param {import('./rest.js').Rest} rest
	 * @param {string} path
	 */
	constructor(rest, path) {
		this.#rest = rest;
		this.#path = path;
	}

	#file = path => `${this.#path}/files/${path.split('/').map(encodeURIComponent).join('/')}`;

	/**
	 * `[{path, type, size, modified_at}]`
	 * @param {{path?: string, depth?: number}} [options]
	 */
	list = async ({ path, depth = 1 } = {}) =>
		(await this.#rest.call('GET', `${this.#path}/files`, undefined, { params: { path, depth } })).entries;
	/** @returns {Promise<Blob>} */
	read = path => this.#rest.raw('GET', this.#file(path), undefined, { read: blobOfBody });
	/** @returns {Promise<string>} */
	readText = path => this.#rest.raw('GET', this.#file(path), undefined, { read: textOfBody });
	write = (path, content) => this.#rest.call('PUT', this.#file(path), content);
	/** The folder as a zip. @returns {Promise<Blob>} */
	archive = path => this.#rest.raw('GET', `${this.#path}/archive`, undefined, { params: { path }, read: blobOfBody });
	/** `[{path, status, additions, deletions}]` */
	changes = async sinceTurn =>
		(await this.#rest.call('GET', `${this.#path}/changes`, undefined, { params: { since_turn: sinceTurn } })).files;
	/** The changes of a file or folder as a unified diff; of everything by default. @returns {Promise<string>} */
	diff = (path = '', sinceTurn = null) =>
		this.#rest.raw('GET', `${this.#path}/changes`, undefined, {
			params: { path, since_turn: sinceTurn },
			read: textOfBody
		});
	/**
	 * Restores the folder to its state before a turn, or to a snapshot.
	 * @param {{turnIndex?: number, snapshotId?: string}} to
	 */
	undo = ({ turnIndex, snapshotId }) =>
		this.#rest.call('POST', `${this.#path}/undo`, { turn_index: turnIndex, snapshot_id: snapshotId });
	snapshots = async () => (await this.#rest.call('GET', `${this.#path}/snapshots`)).snapshots;
}
