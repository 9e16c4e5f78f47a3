/**
 * tool.js: a tool call as one calm line that opens into a card. The body is built
 * when it is first opened: a conversation may have thousands of calls that nobody
 * looks into. A request for permission is shown with the call that it is about.
 */
import { codeBlock } from './code.js';
import { contentBlock } from './content.js';
import { diffLines, diffView, statView } from './diff.js';
import { h, setText, uid } from './dom.js';
import { duration, pretty, shortPath } from './format.js';
import { icon, kindIcon } from './icons.js';
import { MarkdownView } from './markdown.js';
import { PermissionView } from './permission.js';
import { TerminalView } from './terminal.js';

const STATES = { pending: ['Waiting', 'clock'], in_progress: ['Running'], completed: ['Done', 'check'], failed: ['Failed', 'close'], asking: ['Needs your permission', 'shield'], stopped: ['Not finished', 'stop'] };

export class ToolView {
	/** What happens before one's eyes (`live`) is shown; history is folded. */
	constructor(item, context, live) {
		Object.assign(this, { item, context, live });
		this.parts = new Map(); // name -> {text, el} of the body
		const id = uid();
		this.icon = h('span.tool-icon');
		this.title = h('span.ellipsis.grow');
		this.stat = h('span');
		this.time = h('small');
		this.state = h('span.tool-state');
		this.head = h('button.line', { 'aria-expanded': 'false', 'aria-controls': id, onclick: () => this.#toggle() }, this.icon, this.title, this.stat, this.time, this.state, icon('chevron'));
		this.body = h('div.tool-body', { id, hidden: true });
		this.el = h(`div.tool${item.parent ? '.nested' : ''}`, {}, this.head, this.body);
		this.update();
	}

	#toggle(open = this.body.hidden) {
		this.touched = true;
		this.body.hidden = !open;
		this.head.setAttribute('aria-expanded', String(open));
		if (open) this.#drawBody();
	}

	update() {
		const { item, live } = this;
		const { toolKind, permission, abandoned, status, startedAt, endedAt } = item;
		const waits = permission && !permission.outcome && !abandoned;
		const ended = status === 'completed' || status === 'failed';
		const state = waits ? 'asking' : abandoned && !ended ? 'stopped' : status;
		const { dataset } = this.el;
		if (dataset.kind !== toolKind) this.icon.replaceChildren(kindIcon(toolKind));
		if (dataset.state !== state) {
			const [words, mark] = STATES[state] ?? STATES.in_progress;
			this.state.replaceChildren(mark ? icon(mark) : h('span.spinner'), h('span.offscreen', { text: words }));
		}
		Object.assign(dataset, { kind: toolKind, state });
		setText(this.title, titleOf(item));
		setText(this.time, ended && endedAt - startedAt >= 1000 ? duration(endedAt - startedAt) : '');
		this.#stat();
		if (permission) this.#permission(permission);
		if (!this.touched && (waits || (live && (toolKind === 'execute' || diffsOf(item).length)))) this.#toggle(true);
		else if (!this.body.hidden) this.#drawBody();
	}

	#stat() {
		const diffs = diffsOf(this.item);
		if (!diffs.length || this.counted === this.item.content) return;
		this.counted = this.item.content;
		const count = () => this.stat.replaceChildren(statView(diffs.flatMap((one) => diffLines(one.oldText, one.newText))));
		if (this.live) count();
		else this.context.whenIdle(count); // not on the way to the first picture
	}

	#permission({ requestId }) {
		if (this.asked !== requestId) {
			this.asked = requestId;
			this.permission?.el.remove();
			this.permission = new PermissionView(this.item, this.context);
			this.el.append(this.permission.el); // below what it is about
		}
		this.permission.update();
	}

	#drawBody() {
		const { item } = this;
		const { locations, content, input, output, terminal } = item;
		const command = item.toolKind === 'execute' ? commandOf(item) : '';
		const printed = printedBy(item);
		const parts = [];
		/** A part whose data did not change keeps its element, with its scroll position and selection. */
		const part = (name, data, build) => {
			const text = JSON.stringify(data);
			if (this.parts.get(name)?.text !== text) this.parts.set(name, { text, el: build(data) });
			parts.push(this.parts.get(name).el);
		};
		if (locations.length && !diffsOf(item).length) part('locations', locations, locationsView);
		if (command) part('command', command, (text) => codeBlock(text, 'bash').el);
		for (const [index, one] of content.entries()) {
			if (printed == null || (one?.type !== 'terminal' && one?.content?.type !== 'text')) part(index, one, contentView);
		}
		if (printed != null) {
			this.terminal ??= new TerminalView();
			this.terminal.update(printed);
			parts.push(this.terminal.el);
		}
		if (terminal?.exit) part('exit', terminal.exit, (code) => h('p.hint', { text: `Exit code ${code}` }));
		if (input !== undefined && !command && !diffsOf(item).length) part('input', input, section('Input'));
		if (output !== undefined && printed == null && !content.length) part('output', output, section('Output'));
		if (!parts.length) part('none', 0, () => h('p.hint', { text: 'The agent told nothing more about this.' }));
		const { childNodes } = this.body;
		if (childNodes.length !== parts.length || parts.some((el, index) => el !== childNodes[index])) this.body.replaceChildren(...parts);
	}
}

const diffsOf = ({ content }) => content.filter((one) => one?.type === 'diff');

function titleOf({ title, toolKind, locations }) {
	const words = String(title).replace(/^`+|`+$/g, '').replace(/\s+/g, ' ').trim();
	return words || `${toolKind} ${shortPath(locations[0]?.path)}`;
}

function commandOf({ input }) {
	const command = input?.command ?? input?.cmd ?? '';
	return Array.isArray(command) ? command.join(' ') : String(command);
}

/** What a command printed, wherever its agent has put it; null if it printed nothing. */
function printedBy({ terminal, toolKind, content, output }) {
	if (terminal?.output) return terminal.output;
	if (toolKind !== 'execute') return null;
	const texts = content.filter((one) => one?.content?.type === 'text').map((one) => one.content.text);
	if (texts.length) return texts.join('\n').replace(/^\s*```\w*\n([\s\S]*?)\n?```\s*$/, '$1');
	const parts = [output, output?.stdout, output?.stderr, output?.formatted_output ?? output?.output];
	return parts.filter((part) => part && typeof part === 'string').join('\n') || null;
}

function contentView(one) {
	if (one?.type === 'diff') return diffView(one);
	if (one?.type === 'terminal') return h('p.hint', { text: 'The output is in a terminal of the agent.' });
	if (one?.type !== 'content') return codeBlock(pretty(one), 'json').el;
	return one.content?.type === 'text' ? new MarkdownView(one.content.text).el : contentBlock(one.content);
}

const locationsView = (list) => h('p.chips.hint', {}, list.map(({ path, line }) => h('code', { title: path, text: shortPath(path) + (line ? `:${line}` : '') })));

const section = (label) => (value) => h('div', {}, h('h4.hint', { text: label }), codeBlock(pretty(value), typeof value === 'string' ? '' : 'json').el);
