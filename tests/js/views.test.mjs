// The parts of the views that need no page: half-written Markdown, differences of texts, scrolling.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { diffLines } from '../../static/views/diff.js';
import { ago, bytes, compact, duration, money, shortPath } from '../../static/views/format.js';
import { heal } from '../../static/views/heal.js';
import { ScrollKeeper } from '../../static/views/scroll.js';

test('heal: what would be shown for a moment and taken back is not shown', () => {
	const cases = {
		'**bo': '**bo**',
		'a **bold** and *it': 'a **bold** and *it*',
		'**bold `co': '**bold `co`**',
		'x `co': 'x `co`',
		'x ``': 'x ',
		'[link': 'link',
		'[link](http://x': 'link',
		'arr[0]': 'arr[0]',
		'- [': '- ',
		'- [x] done': '- [x] done',
		'a\n-': 'a\n',
		'1': '',
		'| a | b': '',
		'| a | b |\n| -': '',
		'| a | b |\n| - | - |\n| x': '| a | b |\n| - | - |\n| x',
		'2*3*4': '2*3*4',
		snake_case_x: 'snake_case_x',
		'a * b': 'a * b',
		'```js\nfoo **': '```js\nfoo **',
		'done **a**\n\n*b': 'done **a**\n\n*b*',
	};
	for (const [text, shown] of Object.entries(cases)) assert.equal(heal(text), shown, JSON.stringify(text));
});

test('diffLines: both texts can be read from it, whatever they are', () => {
	const check = (a, b) => {
		const rows = diffLines(a, b);
		const side = (sign) => rows.filter((row) => row.sign !== sign).map(({ text }) => text).join('\n');
		assert.deepEqual([side('+'), side('-')], [a, b].map((text) => text.replace(/\n$/, '')));
		return rows;
	};
	// A small machine for numbers, so that a failure can be had again.
	let state = 1;
	const next = (below) => (state = (state * 48271) % 2147483647) % below;
	const text = () => Array.from({ length: next(12) }, () => 'abc'[next(3)]).join('\n');
	for (let n = 0; n < 3000; n += 1) check(text(), text());
	assert.deepEqual(check('a\nb\nc\n', 'a\nx\nc\n').map(({ sign, line }) => [sign, line]), [[' ', 1], ['-', 2], ['+', 2], [' ', 3]]);
	assert.equal(diffLines(null, 'a\r\nb').length, 2);
});

test('diffLines: texts with nothing in common do not take for ever', () => {
	const lines = (step) => Array.from({ length: 20_000 }, (_, n) => `line ${(n * step) % 5003}`).join('\n');
	const begun = performance.now();
	diffLines(lines(7919), lines(7907));
	assert.ok(performance.now() - begun < 1000);
});

test('numbers and times in a few characters', () => {
	assert.deepEqual([40, 1000, 65_000, 3_720_000].map(duration), ['40 ms', '1 s', '1 min 5 s', '1 h 2 min']);
	assert.deepEqual([0, 300, 7200, 200_000].map((past) => ago(Date.now() / 1000 - past)), ['now', '5 min', '2 h', '2 d']);
	assert.deepEqual([950, 34_200, 200_000].map(compact), ['950', '34.2k', '200k']);
	assert.deepEqual([100, 2_000_000].map(bytes), ['1 KB', '1.9 MB']);
	assert.deepEqual([money({ amount: 0.0123, currency: 'USD' }), money({ amount: 2, currency: 'EUR' }), money(null)], ['$0.0123', '2.00 EUR', '']);
	assert.equal(shortPath('/a/b/c/d.js'), 'c/d.js');
});

test('who looks back is left alone, however slowly; who is at the end is kept there', (t) => {
	globalThis.ResizeObserver = class {
		observe() {}
	};
	t.after(() => delete globalThis.ResizeObserver);
	let top = 0;
	const heard = {};
	const scroller = {
		scrollHeight: 2000,
		clientHeight: 500,
		get scrollTop() {
			return top;
		},
		set scrollTop(value) {
			top = Math.min(value, this.scrollHeight - this.clientHeight);
		},
		addEventListener: (name, listener) => (heard[name] = listener),
	};
	const keeper = new ScrollKeeper(scroller, null, () => {});
	/** What the reader, or the browser, does, and then more of an answer comes. */
	const after = (move, more = 0) => {
		scroller.scrollTop = move;
		heard.scroll();
		scroller.scrollHeight += more;
		keeper.keep();
		return top;
	};
	assert.equal(after(1500, 100), 1600);
	assert.equal(after(1597, 100), 1597); // a finger's first few pixels
	assert.equal(after(1650, 100), 1800); // back near the end
	scroller.scrollHeight -= 40; // something is folded: the browser moves up by itself
	assert.equal(after(1760, 100), 1860);
});

test('the JavaScript and CSS of the page stay small: under 200 KB as written', () => {
	const root = new URL('../../static/', import.meta.url);
	const names = readdirSync(root, { recursive: true }).filter((name) => /\.(js|css)$/.test(name) && !/^docs\./.test(name));
	const written = names.reduce((sum, name) => sum + readFileSync(new URL(name, root)).length, 0);
	assert.ok(written < 200_000, `${written} bytes`);
});
