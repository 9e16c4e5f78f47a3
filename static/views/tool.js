/**
 * tool.js: a tool call as one calm line that opens into a card.
 *
 * The body is built when it is first opened: a conversation may have thousands
 * of calls that nobody ever looks into. A request for permission belongs to the
 * call it is about, and is shown on it.
 */
import { h, oncePerFrame, setAttr, setText, uid } from './dom.js';
import { icon, kindIcon } from './icons.js';
import { duration, pretty, shortPath } from './format.js';
import { codeBlock } from './code.js';
import { contentBlock } from './content.js';
import { diffLines, diffStat, diffView, statView } from './diff.js';
import { TerminalView } from './terminal.js';
import { MarkdownView } from './markdown.js';
import { PermissionView } from './permission.js';

const STATUS = {
  pending: { word: 'Waiting', icon: 'clock' },
  in_progress: { word: 'Running', icon: null },
  completed: { word: 'Done', icon: 'check' },
  failed: { word: 'Failed', icon: 'close' },
  asking: { word: 'Needs your permission', icon: 'shield' },
  stopped: { word: 'Not finished', icon: 'stop' },
};

const KIND_WORDS = { read: 'Read', edit: 'Edit', delete: 'Delete', move: 'Move', search: 'Search', execute: 'Run', think: 'Think', fetch: 'Fetch', switch_mode: 'Switch mode', other: 'Tool' };

export class ToolView {
  constructor(item, context, live) {
    this.item = item;
    this.context = context;
    this.live = live;
    const bodyId = uid('tool');
    this.kind = null;
    this.iconSlot = h('span.tool-icon');
    this.title = h('span.tool-title');
    this.stat = h('span.tool-stat');
    this.time = h('span.tool-time');
    this.state = h('span.tool-state');
    this.head = h('button.tool-head', { 'aria-expanded': 'false', 'aria-controls': bodyId, onclick: () => this.toggle() }, this.iconSlot, this.title, this.stat, this.time, this.state, h('span.tool-chevron', {}, icon('chevron')));
    this.body = h('div.tool-body', { id: bodyId, hidden: true });
    this.ask = h('div.tool-ask', { hidden: true });
    this.el = h('div.tool', {}, this.head, this.ask, this.body);
    if (item.parent) this.el.classList.add('nested');
    this.drawBody = oncePerFrame(() => this.#drawBody());
    this.permission = null;
    this.update();
    // What happens before one's eyes is shown; history is folded.
    if (live && (hasDiff(item) || item.toolKind === 'execute')) this.toggle(true);
  }

  toggle(open = this.body.hidden) {
    this.body.hidden = !open;
    this.touched = true;
    setAttr(this.head, 'aria-expanded', String(open));
    this.el.classList.toggle('open', open);
    if (open) this.#drawBody();
  }

  update() {
    const { item } = this;
    if (this.kind !== item.toolKind) {
      this.kind = item.toolKind;
      this.iconSlot.replaceChildren(kindIcon(item.toolKind));
      this.el.dataset.kind = item.toolKind;
    }
    setText(this.title, titleOf(item));
    this.title.classList.toggle('mono', item.toolKind === 'execute');
    this.#state();
    this.#stat();
    this.#permission();
    if (this.live && !this.touched && this.body.hidden && hasDiff(item)) this.toggle(true);
    if (!this.body.hidden) this.drawBody();
  }

  #state() {
    const { item } = this;
    const asking = item.permission && !item.permission.outcome && !item.abandoned;
    const ended = item.status === 'completed' || item.status === 'failed';
    const name = asking ? 'asking' : item.abandoned && !ended ? 'stopped' : item.status;
    const state = STATUS[name] ?? STATUS.in_progress;
    if (this.el.dataset.state !== name) {
      this.el.dataset.state = name;
      this.state.replaceChildren(state.icon ? icon(state.icon) : h('span.spinner'), h('span.offscreen', { textContent: state.word }));
      this.state.title = state.word;
    }
    const took = ended ? item.endedAt - item.startedAt : 0;
    setText(this.time, took >= 1000 ? duration(took) : '');
  }

  #stat() {
    const diffs = this.item.content.filter((one) => one?.type === 'diff');
    if (!diffs.length || this.counted === this.item.content) return;
    this.counted = this.item.content;
    // Counting lines costs a diff: not on the way to the first picture.
    const count = () => {
      const sum = { added: 0, removed: 0 };
      for (const one of diffs) {
        const { added, removed } = diffStat(diffLines(one.oldText ?? '', one.newText ?? ''));
        sum.added += added;
        sum.removed += removed;
      }
      this.stat.replaceChildren(statView(sum, diffs.every((one) => one.oldText == null)));
    };
    if (this.live) count();
    else this.context.whenIdle(count);
  }

  #permission() {
    const { item, context } = this;
    if (!item.permission) return;
    if (this.permission?.requestId !== item.permission.requestId) {
      this.permission = new PermissionView(item, context);
      this.ask.replaceChildren(this.permission.el);
    }
    this.permission.update();
    this.ask.hidden = this.permission.el.hidden;
    const waits = !item.permission.outcome && !item.abandoned;
    this.el.classList.toggle('waits', waits);
    // What is asked is shown in full.
    if (waits && this.body.hidden && !this.touched) this.toggle(true);
  }

  #drawBody() {
    const { item } = this;
    const terminal = terminalText(item);
    const parts = [];
    if (item.locations.length && item.toolKind !== 'edit') parts.push(locations(item.locations));
    if (item.toolKind === 'execute' && commandOf(item)) parts.push(this.#cached('command', commandOf(item), (text) => codeBlock(text, 'bash').el));
    for (const [index, one] of item.content.entries()) {
      if (one?.type === 'diff') parts.push(this.#cached(`diff${index}`, one, () => diffView({ path: one.path ?? '', oldText: one.oldText, newText: one.newText ?? '' }, diffLines(one.oldText ?? '', one.newText ?? ''))));
      else if (one?.type === 'content' && !(terminal != null && one.content?.type === 'text')) parts.push(this.#cached(`content${index}`, one, () => block(one.content)));
      else if (one?.type === 'terminal' && terminal == null) parts.push(h('p.hint', { textContent: 'The output is in a terminal of the agent.' }));
      else if (one?.type !== 'content' && one?.type !== 'terminal') parts.push(codeBlock(pretty(one), 'json').el);
    }
    if (terminal != null) {
      this.terminal ??= new TerminalView();
      this.terminal.update(terminal);
      parts.push(this.terminal.el);
      if (item.terminal?.exit) parts.push(h('p.hint', { textContent: `Exit code ${item.terminal.exit}` }));
    }
    const covered = parts.length > (item.locations.length ? 1 : 0);
    if (item.input !== undefined && !hasDiff(item) && !(item.toolKind === 'execute' && commandOf(item))) parts.push(this.#cached('input', item.input, (value) => section('Input', value)));
    if (item.output !== undefined && !covered) parts.push(this.#cached('output', item.output, (value) => section('Output', value)));
    if (!parts.length) parts.push(h('p.hint', { textContent: 'The agent told nothing more about this.' }));
    sync(this.body, parts);
    this.terminal?.el.isConnected && this.terminal.update(terminal ?? '');
  }

  /** Parts whose data did not change keep their element, with its scroll position and selection. */
  #cached(name, data, build) {
    this.cache ??= new Map();
    const known = this.cache.get(name);
    if (known && same(known.data, data)) return known.el;
    const el = build(data);
    this.cache.set(name, { data, el });
    return el;
  }
}

function same(a, b) {
  return a === b || (typeof a === 'object' && typeof b === 'object' && JSON.stringify(a) === JSON.stringify(b));
}

function sync(parent, nodes) {
  if (parent.childNodes.length === nodes.length && nodes.every((node, index) => parent.childNodes[index] === node)) return;
  parent.replaceChildren(...nodes);
}

function hasDiff(item) {
  return item.content.some((one) => one?.type === 'diff');
}

function titleOf(item) {
  const title = item.title.replace(/^`+|`+$/g, '').replace(/\s+/g, ' ').trim();
  if (title) return title;
  const where = item.locations[0]?.path;
  return [KIND_WORDS[item.toolKind] ?? item.toolKind, where ? shortPath(where) : ''].join(' ').trim();
}

function commandOf(item) {
  const { input } = item;
  const command = input?.command ?? input?.cmd;
  return Array.isArray(command) ? command.join(' ') : typeof command === 'string' ? command : '';
}

/** Output of a command, wherever the agent has put it. Null: none of it is a terminal's. */
function terminalText(item) {
  if (item.terminal?.output) return item.terminal.output;
  if (item.toolKind !== 'execute') return null;
  const text = item.content
    .filter((one) => one?.type === 'content' && one.content?.type === 'text')
    .map((one) => one.content.text)
    .join('\n');
  if (text) return text.replace(/^\s*```[a-z]*\n([\s\S]*?)\n?```\s*$/, '$1');
  const { output } = item;
  if (typeof output === 'string') return output;
  const parts = [output?.stdout, output?.stderr, output?.formatted_output ?? output?.output].filter((part) => typeof part === 'string' && part);
  return parts.length ? parts.join('\n') : null;
}

function locations(list) {
  return h('p.locations', {}, list.map(({ path, line }) => h('code', { title: path, textContent: line ? `${shortPath(path)}:${line}` : shortPath(path) })));
}

function block(content) {
  if (content?.type !== 'text') return contentBlock(content);
  const view = new MarkdownView();
  view.update(content.text ?? '', true);
  return view.el;
}

function section(label, value) {
  return h('div.tool-section', {}, h('h4', { textContent: label }), codeBlock(pretty(value), typeof value === 'string' ? '' : 'json').el);
}
