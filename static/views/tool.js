/** A tool call: a line that opens into a card, built when it is opened: there may be thousands. */
import { codeBlock } from './code.js';
import { contentBlock } from './content.js';
import { diffView } from './diff.js';
import { h, icon, setText, template, toggler } from './dom.js';
import { duration, pretty, shortPath } from './format.js';
import { MarkdownView } from './markdown.js';
import { PermissionView } from './permission.js';
import { TerminalView } from './terminal.js';

const KINDS = { read: 'file', edit: 'pencil', delete: 'trash', move: 'move', search: 'search', execute: 'terminal', think: 'spark', fetch: 'globe', switch_mode: 'swap' };
const STATES = { pending: ['Waiting', 'clock'], in_progress: ['Running'], completed: ['Done', 'check'], failed: ['Failed', 'close'], asking: ['Needs your permission', 'shield'], stopped: ['Not finished', 'stop'] };

export class ToolView {
	constructor(item, context, live) {
		Object.assign(this, template('tool'), { item, context, live, parts: new Map() });
		this.toggle = toggler(this.line, this.body, () => this.#drawBody());
		this.update();
	}

	update() {
		const { item, live, toggle } = this;
		const { toolKind, permission, abandoned, status, startedAt, endedAt } = item;
		const waits = permission && !permission.outcome && !abandoned;
		const state = waits ? 'asking' : abandoned && !endedAt ? 'stopped' : status;
		const { dataset } = this.el;
		if (dataset.kind !== toolKind) this.icon.replaceChildren(icon(KINDS[toolKind] ?? 'wrench'));
		if (dataset.state !== state) {
			const [words, mark] = STATES[state] ?? STATES.in_progress;
			this.state.replaceChildren(mark ? icon(mark) : h('span.spinner'), h('span.offscreen', { text: words }));
		}
		Object.assign(dataset, { kind: toolKind, state });
		setText(this.title, titleOf(item));
		setText(this.time, endedAt - startedAt >= 1000 ? duration(endedAt - startedAt) : '');
		if (permission) this.#permission(permission);
		if (!toggle.touched && (waits || (live && (toolKind === 'execute' || hasDiff(item))))) toggle.open();
		else if (!this.body.hidden) this.#drawBody();
	}

	#permission({ requestId }) {
		if (this.asked !== requestId) {
			this.asked = requestId;
			this.permission?.el.remove();
			this.permission = new PermissionView(this.item, this.context);
			this.el.append(this.permission.el);
		}
		this.permission.update();
	}

	#drawBody() {
		const { item } = this;
		const { locations, content, input, output, terminal } = item;
		const command = item.toolKind === 'execute' ? commandOf(item) : '';
		const printed = printedBy(item);
		const parts = [];
		/** A part whose data did not change keeps its element, scroll position and selection. */
		const part = (name, data, build) => {
			const text = JSON.stringify(data);
			if (this.parts.get(name)?.text !== text) this.parts.set(name, { text, el: build(data) });
			parts.push(this.parts.get(name).el);
		};
		if (locations.length && !hasDiff(item)) part('locations', locations, locationsView);
		if (command) part('command', command, (text) => codeBlock(text, 'bash').el);
		for (const [index, one] of content.entries()) {
			if (printed == null || (one?.type !== 'terminal' && one?.content?.type !== 'text')) part(index, one, (data) => contentView(data, this.context.cwd()));
		}
		if (printed != null) {
			this.terminal ??= new TerminalView();
			this.terminal.update(printed);
			parts.push(this.terminal.el);
		}
		if (terminal?.exit) part('exit', `Exit code ${terminal.exit}`, hint);
		if (input !== undefined && !command && !hasDiff(item)) part('input', input, section('Input'));
		if (output !== undefined && printed == null && !content.length) part('output', output, section('Output'));
		if (!parts.length) part('none', 'The agent told nothing more about this.', hint);
		const { childNodes } = this.body;
		if (childNodes.length !== parts.length || parts.some((el, index) => el !== childNodes[index])) this.body.replaceChildren(...parts);
	}
}

const hasDiff = ({ content }) => content.some((one) => one?.type === 'diff');

function titleOf({ title, toolKind, locations }) {
	const words = String(title).replace(/^`+|`+$/g, '').replace(/\s+/g, ' ').trim();
	return words || `${toolKind} ${shortPath(locations[0]?.path)}`;
}

function commandOf({ input }) {
	const command = input?.command ?? input?.cmd ?? '';
	return Array.isArray(command) ? command.join(' ') : String(command);
}

/** What a command printed, wherever its agent has put it; null if it printed nothing. */
function printedBy({ terminal, toolKind, content, input, output }) {
	if (terminal?.output) return terminal.output;
	if (toolKind !== 'execute') return null;
	const text = content.filter((one) => one?.content?.type === 'text').map((one) => one.content.text).join('\n');
	// Claude has there what a command is for, until it has printed something.
	if (text && text !== input?.description) return text.replace(/^\s*```\w*\n([\s\S]*?)\n?```\s*$/, '$1');
	const parts = [output, output?.stdout, output?.stderr, output?.formatted_output ?? output?.output];
	return parts.filter((part) => part && typeof part === 'string').join('\n') || null;
}

function contentView(one, cwd) {
	if (one?.type === 'diff') return diffView(one, cwd);
	if (one?.type === 'terminal') return hint('The output is in a terminal of the agent.');
	if (one?.type !== 'content') return codeBlock(pretty(one), 'json').el;
	return one.content?.type === 'text' ? new MarkdownView(one.content.text).el : contentBlock(one.content);
}

const locationsView = (list) => h('p.chips.hint', {}, list.map(({ path, line }) => h('code', { title: path, text: shortPath(path) + (line ? `:${line}` : '') })));

const hint = (text) => h('p.hint', { text });

const section = (label) => (value) => h('div', {}, hint(label), codeBlock(pretty(value), typeof value === 'string' ? '' : 'json').el);
