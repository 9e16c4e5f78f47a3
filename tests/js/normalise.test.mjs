// The reducer accepts agent messages of any types, and its model is always valid.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CODE, spell } from '../../static/marks.js';
import { pretty } from '../../static/normalise.js';
import { createTranscript, promptParts, reduce, seed, textOf } from '../../static/transcript.js';
import { broken, ENTRIES, hostileTurns, MORE_VALUES, randomTurns, SETTINGS } from './hostile.mjs';

const isText = value => typeof value === 'string';
const isTextOrNull = value => value === null || isText(value);
const isNumberOrNull = value => value === null || Number.isFinite(value);

const ITEMS = {
	message: ({ parts, messageId }) =>
		parts.every(part => (part.type === 'text' ? isText(part.text) : isText(part.type))) && isTextOrNull(messageId),
	question: ({ message, url, fields }) =>
		isText(message) &&
		isTextOrNull(url) &&
		fields.every(
			({ name, type, title, description, format, choices, low, high }) =>
				[name, type, title, description, format].every(isText) &&
				[low, high].every(isNumberOrNull) &&
				(choices ?? []).every(one => [one.value, one.title, one.description].every(isText))
		),
	tool: ({ title, toolKind, status, content, locations, terminal, permissions }) =>
		[title, toolKind, status].every(isText) &&
		content.every(({ type, content: inner, path, oldText, newText }) =>
			type === 'content'
				? isText(inner.type)
				: type === 'diff'
					? isText(path) && isTextOrNull(oldText) && isText(newText)
					: ['terminal', 'raw'].includes(type)
		) &&
		locations.every(({ path }) => isText(path)) &&
		(terminal === null || (isText(terminal.output) && isNumberOrNull(terminal.exit))) &&
		permissions.every(
			({ options, call }) =>
				isText(call.title) && options.every(({ optionId, name, kind }) => [optionId, name, kind].every(isText))
		),
	plan: ({ entries }) => entries.every(({ content, status }) => isText(content) && isText(status)),
	note: ({ title, text }) => isText(title) && isText(text),
	raw: ({ name, count, data }) => isText(name) && count > 0 && data.length > 0
};
Object.assign(ITEMS, { thought: ITEMS.message, user: ITEMS.message });

function assertSound(model, entry) {
	const where = pretty(entry, 1000);
	for (const turn of model.turns) {
		assert.ok(
			Number.isSafeInteger(turn.index) && isTextOrNull(turn.stopReason) && isNumberOrNull(turn.durationMs),
			where
		);
		assert.ok(turn.error === null || [turn.error.code, turn.error.message].every(isText), where);
		assert.ok(turn.usage === null || isNumberOrNull(turn.usage.totalTokens), where);
		assert.ok(isText(promptParts(turn.prompt).text) && isText(textOf(turn.prompt)), where);
		for (const item of turn.items) assert.ok(ITEMS[item.kind](item), `${item.kind}: ${where}`);
	}
	const { modes, models, configOptions, commands, usage, title, closed, waiting, running } = model;
	for (const list of [modes?.availableModes, models?.availableModels, commands, configOptions])
		for (const { name } of list ?? []) assert.ok(isText(name), where);
	for (const { options } of configOptions ?? [])
		for (const one of options) assert.ok(isText(one.heading ?? one.name), where);
	assert.ok(usage === null || [usage.used, usage.size].every(isNumberOrNull), where);
	assert.ok(isTextOrNull(title) && (closed === null || isText(closed.reason)), where);
	for (const permission of waiting.values()) assert.ok(permission.outcome === null && !permission.over, where);
	for (const index of running) assert.equal(model.byIndex.get(index).status, 'running');
}

const GOOD = {
	type: 'event',
	event: {
		method: 'session/update',
		params: {
			update: { sessionUpdate: 'agent_message_chunk', messageId: 'good', content: { type: 'text', text: 'good' } }
		}
	}
};

test('every field of every wrong type is normalised without an exception', t => {
	const failures = t.mock.method(console, 'error', () => {});
	let count = 0;
	for (const [name, entry] of Object.entries(ENTRIES)) {
		for (const one of broken(entry, MORE_VALUES)) {
			const model = createTranscript();
			const put = fields => reduce(model, { seq: model.head + 1, ts: 1000, turn_index: 1, ...fields });
			put(ENTRIES.turn_start);
			for (const fields of name === 'permission_resolved' ? [ENTRIES.permission_request, one] : [one]) put(fields);
			assertSound(model, one);
			put(GOOD);
			assert.equal(textOf(model.byIndex.get(1).items.at(-1).parts), 'good');
			count += 1;
		}
	}
	assert.ok(count > 2500, `${count}`);
	assert.equal(failures.mock.callCount(), 0); // the last resort was not needed
});

test('a log of all wrong values keeps the valid fields', () => {
	const model = createTranscript();
	for (const entry of hostileTurns()) reduce(model, { ...entry, seq: model.head + 1 });
	assertSound(model, {});
	const said = model.turns.map(({ items }) =>
		items
			.filter(({ kind }) => kind === 'message')
			.map(({ parts }) => textOf(parts))
			.join('')
	);
	for (const [index] of Object.keys(ENTRIES).entries())
		assert.ok(
			said.some(words => words.includes(`good ${index + 1}.`)),
			`${index}`
		);
	assert.equal(model.running.size, 0);
});

test('several wrong fields in one message are normalised', t => {
	const failures = t.mock.method(console, 'error', () => {});
	for (let seed = 1; seed <= 20; seed += 1) {
		const model = createTranscript();
		for (const entry of randomTurns(seed * 7919)) reduce(model, { ...entry, seq: model.head + 1 });
		assertSound(model, { seed });
	}
	assert.equal(failures.mock.callCount(), 0);
});

test('session settings of every wrong type are normalised', () => {
	for (const state of broken(SETTINGS, MORE_VALUES)) {
		const model = createTranscript();
		seed(model, state);
		assertSound(model, state);
	}
});

test('valid messages are unchanged, and inherited names are not used', () => {
	const model = createTranscript();
	for (const entry of Object.values(ENTRIES))
		for (const one of broken(entry)) reduce(model, { ...one, seq: model.head + 1 });
	assert.deepEqual([{}.x, Object.keys(Object.prototype)], [undefined, []]);
	const entry = JSON.parse(JSON.stringify({ ...ENTRIES.tool_call, turn_index: 5, seq: 1 }));
	const before = JSON.stringify(entry);
	const [tool] = reduce(createTranscript(), entry).turns[0].items;
	assert.equal(JSON.stringify(entry), before);
	assert.equal(tool.content[0].content, entry.event.params.update.content[0].content);
});

test('pretty equals JSON.stringify, with a limit', () => {
	for (const entry of Object.values(ENTRIES)) assert.equal(pretty(entry), JSON.stringify(entry, null, 2));
	let deep = [];
	for (let depth = 0; depth < 20_000; depth += 1) deep = [deep];
	for (const value of [deep, 'x'.repeat(1e7), Array(1e6).fill('word'), { a: 'x'.repeat(1e7) }])
		assert.ok(pretty(value).length < 200_000);
	assert.equal(pretty('x'.repeat(1e6), Infinity).length, 1e6);
});

test('spell shows invisible characters by code point and keeps those that scripts need', () => {
	const cases = {
		'rm \u202Ecod.exe': 'rm [U+202E]cod.exe',
		'a\u200B\u200Bb\u00ADc': 'a[U+200B ×2]b[U+00AD]c',
		'\u2066x\u2069 \uFEFF \u061C': '[U+2066]x[U+2069] [U+FEFF] [U+061C]',
		'tag\u{E0061}\u{E0062}': 'tag[U+E0061 U+E0062]',
		'\u3164\u115F\u2028\u2029\u0000\u001B[31m\u009B': '[U+3164 U+115F U+2028 U+2029 U+0000 U+001B][31m[U+009B]',
		'x\uFE0Fy\uFE01': 'x[U+FE0F]y[U+FE01]',
		[`z${'\u0301'.repeat(40)}`]: 'z\u0301\u0301\u0301[U+0301 ×37]',
		'\uD800': '[U+D800]',
		'👨‍👩‍👧 ❤️ 1️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 é e\u0301': '👨‍👩‍👧 ❤️ 1️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 é e\u0301',
		'می‌خواهم שלום ক্‍ষ': 'می‌خواهم שלום ক্‍ষ',
		'two\nlines\r\n\tand more': 'two\nlines\r\n\tand more'
	};
	for (const [text, shown] of Object.entries(cases)) assert.equal(spell(text), shown);
	assert.ok(spell('a\u200b'.repeat(50_000), CODE).endsWith('a[U+200B]')); // all of them, however many
	assert.ok(spell('a'.repeat(50_000)).endsWith('a… (40000 more characters)'));
});
