/**
 * composer.js: where one writes. Enter sends, Shift+Enter breaks the line, Esc
 * stops the agent, arrow up brings back what was asked before, "/" completes the
 * agent's own commands, files come by button, drag or paste.
 */
import { h, setAttr, setText, uid } from './dom.js';
import { icon } from './icons.js';
import { Attachments } from './attachments.js';

export class Composer {
  /**
   * `on`: send({text, blocks, files, names}), stop(), commands() -> [], history() -> [texts], draft(text)
   */
  constructor({ on, upload, placeholder, label = 'Message', controls = [] }) {
    this.on = on;
    this.running = false;
    this.disabled = false;
    this.at = null; //   position in the history, null: not in it
    this.saved = ''; //  the draft that was there before
    const listId = uid('commands');
    this.input = h('textarea', { rows: 1, placeholder, 'aria-label': label, 'aria-autocomplete': 'list', 'aria-controls': listId, enterkeyhint: 'send', autocapitalize: 'sentences', oninput: () => this.#typed(), onkeydown: (event) => this.#key(event), onpaste: (event) => this.#paste(event), onblur: () => this.#complete([]) });
    this.attachments = new Attachments({ upload, onChange: () => this.#buttons() });
    this.picker = h('input', { type: 'file', multiple: true, hidden: true, tabIndex: -1, 'aria-label': 'Choose files to attach', onchange: () => this.#picked() });
    this.attach = h('button.icon-button', { 'aria-label': 'Attach files', title: 'Attach files', onclick: () => this.picker.click() }, icon('clip'));
    this.stopButton = h('button.round.stop', { 'aria-label': 'Stop the agent', title: 'Stop (Esc)', hidden: true, onclick: () => this.on.stop?.() }, icon('stop'));
    this.sendButton = h('button.round.send', { 'aria-label': 'Send', title: 'Send (Enter)', onclick: () => this.send() }, icon('up'));
    this.controls = h('div.composer-controls', {}, controls);
    this.list = h('ul.commands', { id: listId, role: 'listbox', 'aria-label': 'Commands', hidden: true });
    this.hint = h('p.offscreen', { id: uid('hint') });
    this.el = h('form.composer', { onsubmit: (event) => event.preventDefault(), onclick: (event) => event.target === this.el && this.input.focus() }, this.list, this.attachments.el, this.input, h('div.composer-row', {}, this.attach, this.picker, this.controls, this.stopButton, this.sendButton));
    this.#buttons();
  }

  focus() {
    this.input.focus();
  }
  get text() {
    return this.input.value;
  }
  set text(value) {
    this.input.value = value;
    this.#grow();
    this.#buttons();
  }
  add(files) {
    this.attachments.add(files);
    this.focus();
  }

  setRunning(running) {
    if (this.running === running) return;
    this.running = running;
    const hadFocus = document.activeElement === this.stopButton;
    this.stopButton.hidden = !running;
    this.#buttons();
    if (hadFocus) this.focus();
  }

  send() {
    const text = this.text.trim();
    const nothing = !text && !this.attachments.items.length;
    if (nothing || this.disabled || this.attachments.busy || this.attachments.failed) return;
    const extra = this.attachments.take();
    this.text = '';
    this.at = null;
    this.on.draft?.('');
    this.#complete([]);
    this.on.send({ text, ...extra });
  }

  #buttons() {
    const empty = !this.text.trim() && !this.attachments.items.length;
    const blocked = this.attachments.busy || this.attachments.failed;
    this.sendButton.disabled = empty || blocked || this.disabled;
    const label = this.running ? 'Send next: it waits until this turn is over' : 'Send';
    setAttr(this.sendButton, 'aria-label', label);
    setAttr(this.sendButton, 'title', blocked ? 'Waits for the attached files' : `${label} (Enter)`);
    // While it works and nothing is written, one button is enough.
    this.sendButton.hidden = this.running && empty;
  }

  #typed() {
    this.at = null;
    this.#grow();
    this.#buttons();
    this.on.draft?.(this.text);
    this.#suggest();
  }

  #grow() {
    if (CSS.supports('field-sizing', 'content')) return;
    this.input.style.height = 'auto';
    this.input.style.height = `${this.input.scrollHeight}px`;
  }

  #key(event) {
    if (event.isComposing) return; // an input method is at work: its Enter is not ours
    if (!this.list.hidden && this.#listKey(event)) return;
    if (event.key === 'Enter' && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      this.send();
    } else if (event.key === 'Escape' && this.running) {
      event.preventDefault();
      this.on.stop?.();
    } else if (event.key === 'ArrowUp' || event.key === 'ArrowDown') {
      this.#history(event);
    }
  }

  #history(event) {
    const up = event.key === 'ArrowUp';
    const { selectionStart, selectionEnd, value } = this.input;
    if (event.shiftKey || selectionStart !== selectionEnd) return;
    // Within several lines the arrows move between lines; it is history only at the edge.
    if (up ? value.slice(0, selectionStart).includes('\n') : value.slice(selectionStart).includes('\n')) return;
    if (up && this.at === null && value && selectionStart > 0) return;
    const past = this.on.history?.() ?? [];
    if (up ? this.at === 0 || !past.length : this.at === null) return;
    event.preventDefault();
    if (this.at === null) this.saved = value;
    const next = this.at === null ? past.length - 1 : this.at + (up ? -1 : 1);
    this.at = next >= past.length ? null : next;
    this.text = this.at === null ? this.saved : past[this.at];
    const end = up ? 0 : this.text.length;
    this.input.setSelectionRange(end, end);
  }

  // ---- commands ---------------------------------------------------------------

  #suggest() {
    const typed = /^\/(\S*)$/.exec(this.text.slice(0, this.input.selectionStart));
    if (!typed || this.input.selectionStart !== this.text.length) return this.#complete([]);
    const wanted = typed[1].toLowerCase();
    const all = this.on.commands?.() ?? [];
    const starts = all.filter(({ name }) => name.toLowerCase().startsWith(wanted));
    const holds = all.filter(({ name }) => !name.toLowerCase().startsWith(wanted) && name.toLowerCase().includes(wanted));
    this.#complete([...starts, ...holds].slice(0, 50));
  }

  #complete(commands) {
    this.matches = commands;
    this.list.hidden = !commands.length;
    this.list.replaceChildren(
      ...commands.map((command, index) =>
        h(
          'li',
          { role: 'option', id: `${this.list.id}-${index}`, 'aria-selected': 'false', onpointerdown: (event) => event.preventDefault(), onclick: () => this.#take(index) },
          h('span.command-name', { textContent: `/${command.name}` }),
          h('span.command-words', { textContent: [command.description, command.input?.hint ? `(${command.input.hint})` : ''].filter(Boolean).join(' ') }),
        ),
      ),
    );
    this.#mark(commands.length ? 0 : -1);
  }

  #mark(index) {
    this.marked = index;
    [...this.list.children].forEach((row, at) => setAttr(row, 'aria-selected', String(at === index)));
    setAttr(this.input, 'aria-activedescendant', index < 0 ? null : `${this.list.id}-${index}`);
    this.list.children[index]?.scrollIntoView({ block: 'nearest' });
  }

  #listKey(event) {
    const count = this.matches.length;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) this.#mark((this.marked + step + count) % count);
    else if (event.key === 'Tab' || (event.key === 'Enter' && !event.shiftKey)) {
      // Typed out in full: Enter sends it.
      if (event.key === 'Enter' && this.text === `/${this.matches[this.marked].name}`) return false;
      this.#take(this.marked);
    } else if (event.key === 'Escape') this.#complete([]);
    else return false;
    event.preventDefault();
    return true;
  }

  #take(index) {
    this.text = `/${this.matches[index].name} `;
    this.input.setSelectionRange(this.text.length, this.text.length);
    this.#complete([]);
    this.on.draft?.(this.text);
    this.focus();
  }

  // ---- files --------------------------------------------------------------------

  #picked() {
    this.add([...this.picker.files]);
    this.picker.value = '';
  }

  #paste(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    // A copied table is both text and picture; then the text is meant.
    if (!files.length || event.clipboardData.getData('text/plain')) return;
    event.preventDefault();
    this.add(files);
  }
}

/** Makes an area take dropped files; while one drags them over it, it says so. */
export function dropTarget(area, take) {
  const veil = h('div.drop-veil', { hidden: true, 'aria-hidden': 'true' }, h('p', {}, icon('clip'), 'Drop files to attach them'));
  area.append(veil);
  let depth = 0;
  const carries = (event) => event.dataTransfer?.types.includes('Files');
  const show = (on) => (veil.hidden = !on);
  area.addEventListener('dragenter', (event) => {
    if (!carries(event)) return;
    depth += 1;
    show(true);
  });
  area.addEventListener('dragleave', (event) => {
    if (!carries(event)) return;
    depth = Math.max(0, depth - 1);
    if (!depth) show(false);
  });
  area.addEventListener('dragover', (event) => carries(event) && event.preventDefault());
  area.addEventListener('drop', (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth = 0;
    show(false);
    take([...event.dataTransfer.files]);
  });
}
