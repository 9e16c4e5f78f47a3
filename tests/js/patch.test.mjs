// Unified diffs, and what a conversation says about changed files.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encodePath, parsePatch, totals } from '../../static/patch.js';
import { changedPaths } from '../../static/transcript.js';

test('a patch has the rows of its hunks with the numbers of their lines', () => {
	const patch = [
		'diff --git a/a.txt b/a.txt',
		'--- a/a.txt',
		'+++ b/a.txt',
		'@@ -9,3 +9,3 @@ def f():',
		' one',
		'--- old',
		'+++ new',
		' three',
		'\\ No newline at end of file',
		'diff --git a/b.png b/b.png',
		'Binary files a/b.png and b/b.png differ',
		''
	].join('\n');
	const [text, image] = parsePatch(patch);
	assert.deepEqual(
		text.rows.map(({ sign, text: words, line, note, unended }) => [note ?? sign, words, line, unended]),
		[
			['def f():', undefined, undefined, undefined],
			[' ', 'one', 9, undefined],
			['-', '-- old', 10, undefined],
			['+', '++ new', 10, undefined],
			[' ', 'three', 11, true]
		]
	);
	assert.equal(text.binary, false);
	assert.deepEqual([image.rows, image.binary], [[], true]);
	assert.deepEqual(parsePatch('diff --git a/x b/x\n@@ -0,0 +1 @@\n+a\n')[0].rows, [{ sign: '+', text: 'a', line: 1 }]);
	assert.deepEqual(parsePatch(''), []);
	assert.deepEqual(parsePatch('not a patch\n+x'), []);
});

test('totals of files without lines count the files', () => {
	const files = [
		{ additions: 3, deletions: 1 },
		{ additions: null, deletions: null }
	];
	assert.deepEqual(totals(files), { count: 2, added: 3, removed: 1 });
	assert.equal(encodePath('a b/c#d.txt'), 'a%20b/c%23d.txt');
});

test('a turn has changed the files of its completed calls, each once', () => {
	const call = (toolKind, fields) => ({
		kind: 'tool',
		toolKind,
		status: 'completed',
		content: [],
		locations: [],
		...fields
	});
	const items = [
		call('edit', { content: [{ type: 'diff', path: 'a' }], locations: [{ path: 'b' }] }),
		call('edit', { locations: [{ path: 'a' }] }),
		call('delete', { locations: [{ path: 'c' }] }),
		call('read', { locations: [{ path: 'd' }] }),
		call('edit', { status: 'failed', locations: [{ path: 'e' }] })
	];
	assert.deepEqual([...changedPaths({ items })], ['a', 'c']);
});
