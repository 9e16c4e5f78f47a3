// Caches acpx's records of open sessions, and writes them with a delay.
//
// acpx reads and stores a record about eight times a turn, three of them before the agent receives
// the prompt. A later host needs a record to find the agent's session and its settings: operations
// that change those flush the record. The other fields are bookkeeping; a killed host may lose the
// last changes.
//
// acpx also stores every prompt in the record, including images, and copies them each time. They are
// never read, because the agent has its own history and the server its log. So they are removed.

const DELAY_MS = 200;

/** @param files acpx's own store, of `load(id)` and `save(record)`. @param report called with an error. */
export function keepRecords(files, report) {
	const kept = new Map(); // id -> the record that acpx stored last
	const unwritten = new Set(); // ids of the records that were not written yet
	const writing = new Map(); // id -> the promise of the write in progress
	const timers = new Map();

	/** Write all changes of a record. Throws the error of a write; the record stays unwritten then. */
	async function flush(id) {
		clearTimeout(timers.get(id));
		timers.delete(id);
		while (writing.has(id) || unwritten.has(id)) {
			if (!writing.has(id))
				writing.set(
					id,
					write(id).finally(() => writing.delete(id))
				);
			await writing.get(id);
		}
	}

	async function write(id) {
		const record = kept.get(id);
		await files.save(record);
		if (kept.get(id) === record) unwritten.delete(id);
	}

	return {
		load: async id => (kept.has(id) ? structuredClone(kept.get(id)) : files.load(id)),

		async save(record) {
			const id = record.acpxRecordId;
			forgetPrompts(record);
			kept.set(id, structuredClone(record));
			unwritten.add(id);
			if (!timers.has(id))
				timers.set(
					id,
					setTimeout(() => flush(id).catch(report), DELAY_MS)
				);
		},

		flush,

		flushAll: async () => void (await Promise.all([...unwritten].map(flush))),

		/** Write the record of a closed session, and remove it from the cache. */
		async release(id) {
			await flush(id);
			if (!unwritten.has(id)) kept.delete(id);
		},

		/** Remove a record that is about to be deleted from the cache. */
		async forget(id) {
			clearTimeout(timers.get(id));
			timers.delete(id);
			kept.delete(id);
			unwritten.delete(id);
			await writing.get(id)?.catch(() => {});
		}
	};
}

/** Remove the prompts in place: acpx uses the same arrays and objects in the next turn. */
function forgetPrompts({ messages, request_token_usage: usage }) {
	messages.length = 0;
	for (const id in usage) delete usage[id];
}
