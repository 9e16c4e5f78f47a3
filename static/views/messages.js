/** messages.js: what was said. The user's prompt, the agent's messages and thoughts. */
import { h, setAttr, setText, uid } from './dom.js';
import { icon } from './icons.js';
import { duration, shortPath } from './format.js';
import { contentBlock, fileChip } from './content.js';
import { MarkdownView } from './markdown.js';

const LONG_PROMPT = 1200; // characters; longer ones are folded

/** What someone asked, in a bubble; `parts` is transcript.promptParts(). */
export function promptBubble(parts) {
  const el = h('div.bubble');
  const files = parts.files.map((path) => fileChip(shortPath(path).split('/').pop(), path));
  const others = parts.others.map(contentBlock);
  if (files.length || others.length) el.append(h('div.bubble-files', {}, others, files));
  if (parts.text) {
    const text = h('p.plain', { textContent: parts.text });
    el.append(text);
    if (parts.text.length > LONG_PROMPT || parts.text.split('\n').length > 20) {
      text.classList.add('clamped');
      const more = h('button.quiet', {
        textContent: 'Show all',
        'aria-expanded': 'false',
        onclick: () => {
          const folded = text.classList.toggle('clamped');
          setText(more, folded ? 'Show all' : 'Show less');
          setAttr(more, 'aria-expanded', String(!folded));
        },
      });
      el.append(more);
    }
  }
  return el;
}

/** Parts of a message in order: text as growing Markdown, other blocks as they are. */
class PartsView {
  constructor() {
    this.el = h('div.parts');
    this.views = [];
  }

  /** False: something was put off, call again. */
  update(parts, done) {
    let settled = true;
    parts.forEach((part, index) => {
      let view = this.views[index];
      if (!view) {
        view = part.type === 'text' ? new MarkdownView() : { el: contentBlock(part) };
        this.views.push(view);
        this.el.append(view.el);
      }
      // Only the last part still grows; the others were finished when they got a successor.
      const final = done || index < parts.length - 1;
      if (view.update && !view.finished) {
        if (!view.update(part.text, final)) settled = false;
        view.finished = final;
      }
    });
    return settled;
  }
}

export class MessageView {
  constructor(item, context) {
    this.item = item;
    this.context = context;
    this.parts = new PartsView();
    this.el = h(`div.message.${item.kind}`, {}, this.parts.el);
    this.update();
  }

  update() {
    if (!this.parts.update(this.item.parts, this.item.done)) this.context.again(this.item);
  }
}

/** Thoughts are folded: a line that says that there are some, and how long they took. */
export class ThoughtView {
  constructor(item, context) {
    this.item = item;
    this.context = context;
    this.parts = null;
    const id = uid('thought');
    this.label = h('span');
    this.head = h('button.thought-head', { 'aria-expanded': 'false', 'aria-controls': id, onclick: () => this.toggle() }, icon('spark'), this.label, h('span.tool-chevron', {}, icon('chevron')));
    this.body = h('div.thought-body', { id, hidden: true });
    this.el = h('div.thought', {}, this.head, this.body);
    this.update();
  }

  toggle() {
    const open = this.body.hidden;
    this.body.hidden = !open;
    setAttr(this.head, 'aria-expanded', String(open));
    this.el.classList.toggle('open', open);
    this.update();
  }

  update() {
    const { item } = this;
    const took = item.endedAt - item.startedAt;
    setText(this.label, !item.done ? 'Thinking' : took >= 1000 ? `Thought for ${duration(took)}` : 'Thought');
    this.el.classList.toggle('busy', !item.done);
    if (this.body.hidden) return;
    if (!this.parts) {
      this.parts = new PartsView();
      this.body.append(this.parts.el);
    }
    if (!this.parts.update(item.parts, item.done)) this.context.again(item);
  }
}
