import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { keepRecords } from '../../server/agents/host/records.mjs';

/** A store in memory that counts, and fails while it is told to. */
function memory() {
	const files = {
		kept: new Map(),
		saves: 0,
		broken: false,
		load: async id => structuredClone(files.kept.get(id)),
		async save(record) {
			files.saves += 1;
			await sleep(1);
			if (files.broken) throw new Error('no space');
			files.kept.set(record.acpxRecordId, structuredClone(record));
		}
	};
	return files;
}

const record = turns => ({ acpxRecordId: 'one', turns, messages: [] });

test('what is saved is loaded at once, and written once, a moment later', { timeout: 10_000 }, async () => {
	const files = memory();
	const records = keepRecords(files, assert.fail);
	const mine = record(1);
	await records.save(mine);
	await records.save(record(2));
	mine.turns = 99; // whose it is may go on with it
	assert.deepEqual(await records.load('one'), record(2));
	assert.equal(files.saves, 0);
	while (!files.kept.has('one')) await sleep(5);
	assert.deepEqual(files.kept.get('one'), record(2));
	assert.equal(files.saves, 1);
});

test('a flush writes all that was saved, also during a write', { timeout: 10_000 }, async () => {
	const files = memory();
	const records = keepRecords(files, assert.fail);
	await records.save(record(1));
	const flushed = records.flush('one');
	await records.save(record(2));
	await flushed;
	assert.deepEqual(files.kept.get('one'), record(2));
	await records.save(record(3));
	await records.flushAll();
	assert.deepEqual(files.kept.get('one'), record(3));
	await records.flush('nobody');
});

test('what cannot be written is told, kept, and written when it can be', { timeout: 10_000 }, async () => {
	const files = memory();
	const told = [];
	const records = keepRecords(files, error => told.push(error.message));
	files.broken = true;
	await records.save(record(1));
	await assert.rejects(records.flush('one'), /no space/);
	await records.save(record(2));
	while (!told.length) await sleep(5);
	assert.deepEqual(await records.load('one'), record(2));
	files.broken = false;
	await records.flushAll();
	assert.deepEqual(files.kept.get('one'), record(2));
});

test('a forgotten record is not written any more', { timeout: 10_000 }, async () => {
	const files = memory();
	const records = keepRecords(files, assert.fail);
	await records.save(record(1));
	const flushed = records.flush('one');
	await records.save(record(2));
	await records.forget('one');
	files.kept.delete('one'); // as who forgets it deletes the file
	await flushed;
	assert.equal(await records.load('one'), undefined);
	assert.equal(files.saves, 1);
});

test('what was written is loaded from memory, until its session rests', { timeout: 10_000 }, async () => {
	const files = memory();
	const records = keepRecords(files, assert.fail);
	await records.save(record(1));
	await records.flush('one');
	files.kept.set('one', record(2)); // by another hand
	assert.deepEqual(await records.load('one'), record(1));
	await records.release('one');
	assert.deepEqual(await records.load('one'), record(2));
});

test('what a release cannot write is kept', { timeout: 10_000 }, async () => {
	const files = memory();
	const records = keepRecords(files, assert.fail);
	files.broken = true;
	await records.save(record(1));
	await assert.rejects(records.release('one'), /no space/);
	assert.deepEqual(await records.load('one'), record(1));
});

test('prompts are left out, also of what acpx goes on with', { timeout: 10_000 }, async () => {
	const files = memory();
	const records = keepRecords(files, assert.fail);
	const mine = { ...record(1), messages: [{ User: {} }], request_token_usage: { of: {} } };
	const { messages, request_token_usage: usage } = mine;
	await records.save(mine);
	const bare = { ...record(1), request_token_usage: {} };
	assert.deepEqual(await records.load('one'), bare);
	assert.deepEqual([messages, usage], [[], {}]);
	await records.flushAll();
	assert.deepEqual(files.kept.get('one'), bare);
});
