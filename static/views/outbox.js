/** outbox.js: prompts that are no turns yet: on their way, failed, or waiting in the queue. */
import { h } from './dom.js';
import { icon } from './icons.js';
import { promptBubble } from './messages.js';

export class OutboxView {
  /** `on`: edit(prompt), discard(id), resend(prompt), unqueue(turnIndex); `parts`: promptParts */
  constructor(root, parts, on) {
    this.root = root;
    this.parts = parts;
    this.on = on;
    this.shown = '';
  }

  update({ outbox, queue, away }) {
    const shown = JSON.stringify([[...queue.keys()], [...outbox.values()].map(({ id, state, error }) => [id, state, error?.code]), away]);
    if (shown === this.shown) return false;
    this.shown = shown;
    const rows = [];
    for (const one of queue.values()) rows.push(this.#queued(one, rows.length + 1));
    for (const one of outbox.values()) rows.push(this.#sent(one, away));
    this.root.replaceChildren(...rows);
    return true;
  }

  #queued({ turn_index: index, prompt }, place) {
    return this.#row('queued', prompt, [
      icon('clock'),
      h('span', { textContent: place === 1 ? 'Queued: next' : `Queued: number ${place}` }),
      h('button.quiet', { textContent: 'Take out', 'aria-label': `Take out queued prompt ${place}`, onclick: () => this.on.unqueue(index) }),
    ]);
  }

  #sent(one, away) {
    if (one.state !== 'failed') {
      return this.#row('sending', one.prompt, [h('span', { textContent: away ? 'Will be sent when the connection is back' : 'Sending…' })]);
    }
    return this.#row('failed', one.prompt, [
      icon('alert'),
      h('span', { textContent: one.error.message }),
      h('button.quiet', { textContent: 'Send again', onclick: () => this.on.resend(one) }),
      h('button.quiet', { textContent: 'Edit', onclick: () => this.on.edit(one) }),
      h('button.quiet', { textContent: 'Discard', onclick: () => this.on.discard(one.id) }),
    ]);
  }

  #row(state, prompt, notes) {
    const blocks = typeof prompt === 'string' ? [{ type: 'text', text: prompt }] : prompt;
    return h('div.waiting-prompt', { 'data-state': state }, promptBubble(this.parts(blocks)), h('p.waiting-note', { role: 'status' }, notes));
  }
}
