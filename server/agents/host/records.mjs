// acpx's records of its sessions: kept here while a session is open, and written a moment later.
//
// acpx reads and stores a record some eight times a turn, and the agent gets its prompt only behind
// the third time. A record tells a later host which of the agent's sessions is which, and with which
// settings: what changes that is flushed by whoever changed it. The rest is bookkeeping of which a
// killed host may lose the last moment.
//
// acpx also puts every prompt into it, pictures and all, and copies them each time. Nobody reads
// them: the agent has its own memory, and the server its log. So they are left out.

const DELAY_MS = 200;

/** @param files acpx's own store, of `load(id)` and `save(record)`. @param report told of an error. */
export function keepRecords(files, report) {
	const kept = new Map(); // id -> the record, as acpx stored it last
	const unwritten = new Set(); // ids of those that the files do not have yet
	const writing = new Map(); // id -> the promise of the write that goes on
	const timers = new Map();

	/** Write until all is written. Throws what the write throws, and the record waits on. */
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

		/** Write the record of a session that rests, and keep it no longer. */
		async release(id) {
			await flush(id);
			if (!unwritten.has(id)) kept.delete(id);
		},

		/** Let go of a record that is about to be deleted. */
		async forget(id) {
			clearTimeout(timers.get(id));
			timers.delete(id);
			kept.delete(id);
			unwritten.delete(id);
			await writing.get(id)?.catch(() => {});
		}
	};
}

/** In the arrays and objects themselves: acpx goes on with the same ones in the next turn. */
function forgetPrompts({ messages, request_token_usage: usage }) {
	messages.length = 0;
	for (const id in usage) delete usage[id];
}
