/**
 * permission.js: the agent asks, in its own words and with its own options.
 *
 * Nothing takes the focus away from what someone is typing, so no key pressed
 * there can answer by accident. Within the card, arrows move and digits choose.
 */
import { h, setText, uid } from './dom.js';
import { icon } from './icons.js';

const OUTCOME = { allow_once: 'Allowed once', allow_always: 'Always allowed', reject_once: 'Rejected', reject_always: 'Always rejected' };
const BY = { policy: 'by the session’s policy', timeout: 'nobody answered in time', cancel: 'the turn was stopped', client: '' };

export class PermissionView {
  constructor(item, context) {
    this.item = item;
    this.context = context;
    this.requestId = item.permission.requestId;
    this.sent = null;
    const id = uid('ask');
    this.question = h('p.ask-question', { id }, icon('shield'), h('span', { textContent: `${context.agentName()} asks for your permission` }));
    this.buttons = item.permission.options.map((option, index) =>
      h(
        `button.ask-option.${tone(option.kind)}`,
        { onclick: () => this.choose(option), 'aria-keyshortcuts': index < 9 ? String(index + 1) : null },
        h('span', { textContent: option.name ?? option.optionId }),
        index < 9 ? h('kbd', { textContent: String(index + 1), 'aria-hidden': 'true' }) : null,
      ),
    );
    this.note = h('p.hint', { role: 'status' });
    this.card = h('div.ask-card', { role: 'group', 'aria-labelledby': id, onkeydown: (event) => this.#key(event) }, this.question, h('div.ask-options', {}, this.buttons), this.note);
    this.result = h('p.ask-result');
    this.el = h('div', {}, this.card, this.result);
  }

  focus() {
    this.buttons[0]?.focus();
  }

  choose(option) {
    this.sent = option;
    const now = this.context.answer(this.requestId, option.optionId);
    setText(this.note, now ? 'Sending your answer…' : 'Your answer goes out as soon as the connection is back.');
    for (const button of this.buttons) button.disabled = true;
  }

  update() {
    const { permission, abandoned } = this.item;
    const open = !permission.outcome && !abandoned;
    const hadFocus = !open && this.card.contains(document.activeElement);
    this.card.hidden = !open;
    const words = open ? '' : this.#words(permission);
    setText(this.result, words);
    this.result.hidden = !words;
    this.el.hidden = !open && !words;
    // The buttons are gone: the focus goes on to where one would type next.
    if (hadFocus) this.context.focusComposer();
  }

  #words({ outcome, by, options }) {
    // What the policy lets through is routine; it needs no line of its own.
    const option = options.find((one) => one.optionId === outcome?.optionId);
    if (by === 'policy' && option?.kind?.startsWith('allow')) return '';
    const what = option ? (OUTCOME[option.kind] ?? option.name) : 'Not allowed';
    return [what, BY[by]].filter(Boolean).join(': ');
  }

  #key(event) {
    const index = this.buttons.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step && index >= 0) {
      this.buttons[(index + step + this.buttons.length) % this.buttons.length].focus();
      event.preventDefault();
    } else if (/^[1-9]$/.test(event.key) && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const option = this.item.permission.options[Number(event.key) - 1];
      if (option && !this.sent) this.choose(option);
    }
  }
}

function tone(kind = '') {
  if (kind === 'allow_once') return 'primary';
  return kind.startsWith('reject') ? 'reject' : 'secondary';
}
