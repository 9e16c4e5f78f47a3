import assert from 'node:assert/strict';
import { test } from 'node:test';
import { linkTo, matches, Paths } from '../../static/paths.js';

const entries = [
	'README.md',
	'node_modules/composer.js',
	'src',
	'src/app.js',
	'src/views',
	'src/views/composer.js',
	'tests/src.py'
].map(path => ({ path, type: /\.\w+$/.test(path) ? 'file' : 'directory', size: 1 }));
const paths = typed => matches(entries, typed).map(({ path }) => path);

test('paths list a folder, find names anywhere, and put libraries last', () => {
	assert.deepEqual(paths(''), ['README.md', 'src']);
	assert.deepEqual(paths('src/'), ['src/app.js', 'src/views']);
	assert.deepEqual(paths('comp'), ['src/views/composer.js', 'node_modules/composer.js']);
	assert.deepEqual(paths('src'), ['src', 'tests/src.py', 'src/app.js', 'src/views', 'src/views/composer.js']);
	assert.deepEqual(paths('absent'), []);
});

test('paths ask once, and again for a folder that the first answer left out', async () => {
	const asked = [];
	const list = async folder => {
		asked.push(folder);
		return { entries: folder ? [{ path: 'deep/file.txt', type: 'file', size: 2 }] : [], truncated: !folder };
	};
	const found = new Paths(list);
	await found.find('a');
	await found.find('ab');
	const [file] = await found.find('deep/f');
	assert.deepEqual(asked, ['', 'deep']);
	assert.equal(linkTo('/a b', file).uri, 'file:///a%20b/deep/file.txt');
	const failing = new Paths(() => Promise.reject(new Error('gone')));
	await assert.rejects(failing.find('a'), /gone/);
});
