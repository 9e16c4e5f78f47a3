// The parts of the views that need no page: half-written Markdown, differences of texts, scrolling.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lexer } from 'marked';
import { plain, Screen } from '../../static/views/ansi.js';
import { testsOf } from '../../static/views/command.js';
import { compare, marks } from '../../static/views/diff.js';
import { ago, bytes, compact, duration, money, shortPath } from '../../static/views/format.js';
import { heal } from '../../static/views/heal.js';
import { isFormula, isTooLong, options, safeHtml } from '../../static/views/markup.js';
import { ScrollKeeper } from '../../static/views/scroll.js';

test('heal hides markup that is still incomplete', () => {
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
		1: '',
		'| a | b': '',
		'| a | b |\n| -': '',
		'| a | b |\n| - | - |\n| x': '| a | b |\n| - | - |\n| x',
		'2*3*4': '2*3*4',
		snake_case_x: 'snake_case_x',
		'a * b': 'a * b',
		'```js\nfoo **': '```js\nfoo **',
		'done **a**\n\n*b': 'done **a**\n\n*b*',
		'so \\(x^': 'so ',
		'so \\(x\\) and \\': 'so \\(x\\) and ',
		'\\[\na': '',
		'$$\na': '',
		'$$a$$ b': '$$a$$ b',
		'is $\\frac{1': 'is ',
		'costs $5 and $10 or': 'costs $5 and $10 or',
		'x `\\(` y': 'x `\\(` y',
		'a <kb': 'a ',
		'a < b': 'a < b',
		'> [!NO': '',
		'x[^1': 'x'
	};
	for (const [text, shown] of Object.entries(cases)) assert.equal(heal(text), shown, JSON.stringify(text));
});

test('diffLines contains both texts completely', () => {
	const check = (a, b) => {
		const rows = diffLines(a, b);
		const side = sign =>
			rows
				.filter(row => row.sign !== sign)
				.map(({ text }) => text)
				.join('\n');
		assert.deepEqual(
			[side('+'), side('-')],
			[a, b].map(text => text.replace(/\n$/, ''))
		);
		return rows;
	};
	// A small machine for numbers, so that a failure can be had again.
	let state = 1;
	const next = below => (state = (state * 48271) % 2147483647) % below;
	const text = () => Array.from({ length: next(12) }, () => 'abc'[next(3)]).join('\n');
	for (let n = 0; n < 3000; n += 1) check(text(), text());
	assert.deepEqual(
		check('a\nb\nc\n', 'a\nx\nc\n').map(({ sign, line }) => [sign, line]),
		[
			[' ', 1],
			['-', 2],
			['+', 2],
			[' ', 3]
		]
	);
	assert.equal(diffLines(null, 'a\r\nb').length, 2);
});

test('isFormula rejects prices, variables and prose', () => {
	for (const text of ['x', 'a_1', 'E = mc^2', 'n log n', '2 + 2 = 4', '\\alpha', '5']) assert.ok(isFormula(text), text);
	for (const text of ['5 and ', '5 (or 4', 'see note', ' ', 'a `b` c', 'x'.repeat(5000), 'a\n\nb'])
		assert.ok(!isFormula(text), text);
});

test('safeHtml keeps harmless tags and escapes the rest', () => {
	const cases = {
		'<kbd onclick="x">K</kbd><BR/>': '<kbd>K</kbd><br>',
		'a<!-- <b> -->b': 'ab',
		'<h1 align=center style=x>T</h1>': '<h3 align=center>T</h3>',
		'<details open ontoggle=x>': '<details open>',
		'<a data-href=1 href = "https://x.y/?a&b" hrefs=2 target=_top>': '<a href="https://x.y/?a&b">',
		"<img title=' src=z' src=/i.png style='x' srcset=y>": '<img src=/i.png>',
		'1 < 2 > 1': '1 &#60; 2 &#62; 1',
		'<script>x</script>': '&#60;script&#62;x&#60;/script&#62;',
		'<svg/onload=x><math><style>': '&#60;svg/onload=x&#62;&#60;math&#62;&#60;style&#62;',
		'<b title=">"onclick=x>': '<b>',
		'<b <img src=x onerror=y>': '&#60;b <img src=x>',
		'<!-- never closed <b>': ''
	};
	for (const [text, shown] of Object.entries(cases)) assert.equal(safeHtml(text), shown);
});

test('deeply nested Markdown is parsed quickly', () => {
	assert.ok(isTooLong({ type: 'html', raw: '<table><tr><td>'.repeat(60) }));
	assert.ok(!isTooLong({ type: 'html', raw: '<tr><td>a<br>b</td></tr>\n'.repeat(500) }));
	const begun = process.cpuUsage();
	new Lexer(options).blockTokens('\\begin{align}\n'.repeat(1000));
	assert.ok(process.cpuUsage(begun).user < 1_000_000); // µs of processor time
});

test('compare reports line ends, a missing last one, and changes within lines', () => {
	const lines = Array.from({ length: 1100 }, (_, n) => `line ${n}`);
	const changed = lines.map((line, n) => (n === 3 || n === 1000 ? `${line} is new` : line));
	assert.equal(diffLines(lines.join('\n'), changed.join('\r\n')).filter(({ sign }) => sign !== ' ').length, 4);
	assert.deepEqual(compare('a\r\nb\r\n', 'a\nb\n'), {
		rows: [' ', ' '].map((sign, n) => ({ sign, text: 'ab'[n], line: n + 1 })),
		ends: [['CRLF', 'LF', 2]]
	});
	assert.deepEqual(
		diffLines('a\nb', 'a\nb\n').map(({ sign, text, unended }) => [sign, text, unended]),
		[
			[' ', 'a', undefined],
			['-', 'b', true],
			['+', 'b', undefined]
		]
	);
	assert.deepEqual(
		diffLines('', 'a').map(({ sign }) => sign),
		['+']
	);
	assert.deepEqual(
		diffLines('a', { not: 'text' }).map(({ sign }) => sign),
		['-']
	);
	const [old, now] = [
		{ sign: '-', text: 'const a = 1;' },
		{ sign: '+', text: 'const a = 2;' }
	];
	assert.deepEqual(marks({ ...now, pair: old }), [
		['const a = ', false],
		['2', true],
		[';', false]
	]);
	assert.deepEqual(marks({ ...old, pair: { sign: '+', text: 'all else' } }), [['const a = 1;', false]]);
});

const diffLines = (before, after) => compare(before, after).rows;

/** What stands on the screen after `pieces`: lines of [text, style], without plain styles. */
function screenOf(...pieces) {
	const lines = [[]];
	const screen = new Screen(({ runs }, over) => {
		lines[lines.length - 1] = runs.map(({ text, style }) =>
			style && Object.keys(style).length ? [text, style] : text
		);
		if (over) lines.push([]);
	});
	for (const piece of pieces) screen.write(piece);
	return lines;
}

test('Screen: colours of every kind, and codes that follow each other', () => {
	const one = codes => screenOf(`\x1b[${codes}mx`)[0][0][1];
	assert.deepEqual(one('31'), { color: '#f08a80' });
	assert.deepEqual(one('1;91'), { color: '#ff9f94', fontWeight: '700' });
	assert.deepEqual(one('38;5;208'), { color: '#ff8700' });
	assert.deepEqual(one('38;2;255;100;0'), { color: '#ff6400' });
	assert.deepEqual(one('38:2::255:100:0;4:3'), { color: '#ff6400', textDecoration: 'underline' });
	assert.deepEqual(one('48;5;21'), { color: '#e6e1d8', backgroundColor: '#0000ff' });
	assert.deepEqual(one('7'), { color: '#1c1a18', backgroundColor: '#e6e1d8' });
	assert.deepEqual(one('2;3;9'), { opacity: '0.75', fontStyle: 'italic', textDecoration: 'line-through' });
	assert.deepEqual(one('58;5;1;1'), { fontWeight: '700' });
	for (const codes of ['31;0', '31;', '1;22', '38;5;999', '38;2;1', '38', '31;39', '?25'])
		assert.deepEqual(screenOf(`\x1b[${codes}mx`), [['x']], codes);
	assert.deepEqual(screenOf('\x1b[31ma\x1b[mb'), [[['a', { color: '#f08a80' }], 'b']]);
});

test('Screen handles overwriting and control sequences', () => {
	assert.deepEqual(screenOf('10 %\r50 %\r100 %\nend'), [['100 %'], ['end']]);
	assert.deepEqual(screenOf('long line\rshort'), [['short', 'line']]);
	assert.deepEqual(screenOf('long line\r\x1b[Kshort'), [['short']]);
	assert.deepEqual(screenOf('a\r\nb\r\n'), [['a'], ['b'], []]);
	assert.deepEqual(screenOf('ab\b\bX|\b \b'), [['X', ' ']]);
	assert.deepEqual(screenOf('\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b\x1b]8;;\x1b\\\x1b[2Jc\x1b(B\x1b7\x00d'), [
		['a', 'b', 'c', 'd']
	]);
});

test('Screen shows output in pieces like output at once', () => {
	const text = 'a\x1b[38;5;208mb\x1b[0m\r\x1b]8;;x\x1b\\c\x1b[1mdé\n\x1b]0;t\x07\x1b[31me\b\bf\n';
	const flat = lines =>
		lines.map(line =>
			line.flatMap(run => (typeof run === 'string' ? [...run] : [...run[0]].map(char => [char, run[1]])))
		);
	for (let at = 0; at < text.length; at += 1)
		assert.deepEqual(flat(screenOf(text.slice(0, at), text.slice(at))), flat(screenOf(text)), String(at));
	assert.deepEqual(flat(screenOf(...text)), flat(screenOf(text)));
	assert.equal(screenOf(`\x1b]${'x'.repeat(9000)}`, 'shown')[0].at(-1), 'shown');
});

test('diffLines is fast for unrelated texts', () => {
	const lines = step => Array.from({ length: 20_000 }, (_, n) => `line ${(n * step) % 5003}`).join('\n');
	const begun = process.cpuUsage();
	diffLines(lines(7919), lines(7907));
	assert.ok(process.cpuUsage(begun).user < 1_000_000); // µs of processor time
});

test('numbers and times are formatted briefly', () => {
	assert.deepEqual([40, 1000, 65_000, 3_720_000].map(duration), ['40 ms', '1 s', '1 min 5 s', '1 h 2 min']);
	assert.deepEqual(
		[0, 300, 7200, 200_000].map(past => ago(Date.now() / 1000 - past)),
		['now', '5 min', '2 h', '2 d']
	);
	assert.deepEqual([950, 34_200, 200_000].map(compact), ['950', '34.2k', '200k']);
	assert.deepEqual([100, 2_000_000].map(bytes), ['1 KB', '1.9 MB']);
	assert.deepEqual(
		[money({ amount: 0.0123, currency: 'USD' }), money({ amount: 2, currency: 'EUR' }), money(null)],
		['$0.0123', '2.00 EUR', '']
	);
	assert.equal(shortPath('/a/b/c/d.js'), 'c/d.js');
});

test('the scroll position is kept while reading back and follows at the end', t => {
	/** @type {any} */ (globalThis).ResizeObserver = class {
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
		addEventListener: (name, listener) => (heard[name] = listener)
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

test('output is copied without its control sequences', () => {
	assert.equal(plain('\x1b[1;31mred\x1b[0m \x1b]0;title\x07plain\n'), 'red plain\n');
});

test('the last command that ran tests says whether they passed', () => {
	const run = (command, output = '', more = {}) => ({
		kind: 'tool',
		toolKind: 'execute',
		title: '',
		status: 'completed',
		endedAt: 1,
		input: { command },
		content: [{ type: 'content', content: { type: 'text', text: output } }],
		terminal: null,
		...more
	});
	const told = (...items) => testsOf({ items });
	for (const command of [
		'pytest tests/test_a.py',
		'npm test',
		'npm run test:unit',
		'cd web && CI=1 npx vitest run',
		'cargo test -- --nocapture',
		'.venv/bin/python -m pytest -q',
		'uv run pytest'
	])
		assert.equal(told(run(command)), 'tests passed', command);
	for (const command of ['git commit -m "fix tests"', 'cat tests/a.py', 'test -f a', 'ls tests; pwd', 'echo pytest'])
		assert.equal(told(run(command)), '', command);
	assert.equal(told(run('pytest', '\x1b[31m1 failed\x1b[0m, 3 passed')), 'tests failed');
	assert.equal(told(run('pytest', '0 failed, 3 passed')), 'tests passed');
	assert.equal(told(run('pytest', '', { status: 'failed' })), 'tests failed');
	assert.equal(told(run('npm test', '', { terminal: { output: 'FAIL', exit: 0 } })), 'tests passed');
	assert.equal(told(run('npm test', '', { terminal: { output: '', exit: 2 } })), 'tests failed');
	assert.equal(told(run('npm test', 'FAIL'), run('npm test', 'ok'), run('ls')), 'tests passed');
	assert.equal(told({ kind: 'message', parts: [] }, run('npm test', '', { endedAt: null })), '');
});
