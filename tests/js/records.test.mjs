import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { keepRecords } from '../../server/agents/host/records.mjs';

/** A store in memory that counts calls, and fails on request. */
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

test('a saved record is loaded at once and written once, later', { timeout: 10_000 }, async () => {
	const files = memory();
	const records = keepRecords(files, assert.fail);
	const mine = record(1);
	await records.save(mine);
	await records.save(record(2));
	mine.turns = 99; // the caller may keep changing its record
	assert.deepEqual(await records.load('one'), record(2));
	assert.equal(files.saves, 0);
	while (!files.kept.has('one')) await sleep(5);
	assert.deepEqual(files.kept.get('one'), record(2));
	assert.equal(files.saves, 1);
});

test('flush writes all saved records, also during a write', { timeout: 10_000 }, async () => {
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

test('a failed write is reported, kept, and retried', { timeout: 10_000 }, async () => {
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

test('a forgotten record is not written', { timeout: 10_000 }, async () => {
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

test('a written record is loaded from memory until its session is released', { timeout: 10_000 }, async () => {
	const files = memory();
	const records = keepRecords(files, assert.fail);
	await records.save(record(1));
	await records.flush('one');
	files.kept.set('one', record(2)); // by another hand
	assert.deepEqual(await records.load('one'), record(1));
	await records.release('one');
	assert.deepEqual(await records.load('one'), record(2));
});

test('a record that release cannot write is kept', { timeout: 10_000 }, async () => {
	const files = memory();
	const records = keepRecords(files, assert.fail);
	files.broken = true;
	await records.save(record(1));
	await assert.rejects(records.release('one'), /no space/);
	assert.deepEqual(await records.load('one'), record(1));
});

test('prompts are omitted, also from the record that acpx keeps using', { timeout: 10_000 }, async () => {
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
