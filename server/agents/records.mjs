// acpx's records of its sessions, written a moment later.
//
// acpx stores a record three times a turn, and the agent gets its prompt only behind the second.
// A record tells a later host which of the agent's sessions is which, and with which settings: what
// changes that is flushed by whoever changed it. The rest is bookkeeping of which a killed host may
// lose the last moment.

const DELAY_MS = 200;

/** @param files acpx's own store, of `load(id)` and `save(record)`. @param report told of an error. */
export function writeBehind(files, report) {
  const waiting = new Map(); // id -> the record that is to be written
  const writing = new Map(); // id -> the promise of the write that goes on
  const timers = new Map();

  /** Write until nothing waits. Throws what the write throws, and the record waits on. */
  async function flush(id) {
    clearTimeout(timers.get(id));
    timers.delete(id);
    while (writing.has(id) || waiting.has(id)) {
      if (!writing.has(id)) writing.set(id, write(id).finally(() => writing.delete(id)));
      await writing.get(id);
    }
  }

  async function write(id) {
    const record = waiting.get(id);
    await files.save(record);
    if (waiting.get(id) === record) waiting.delete(id);
  }

  return {
    load: async (id) => (waiting.has(id) ? structuredClone(waiting.get(id)) : files.load(id)),

    async save(record) {
      const id = record.acpxRecordId;
      waiting.set(id, structuredClone(record));
      if (!timers.has(id)) timers.set(id, setTimeout(() => flush(id).catch(report), DELAY_MS));
    },

    flush,

    flushAll: async () => void (await Promise.all([...waiting.keys()].map(flush))),

    /** Let go of a record that is about to be deleted. */
    async forget(id) {
      clearTimeout(timers.get(id));
      timers.delete(id);
      waiting.delete(id);
      await writing.get(id)?.catch(() => {});
    },
  };
}
