/** dialogs.js: small modal questions, on the browser's own <dialog>. */
import { h } from './dom.js';

export function confirm({ title, text, action, danger = false }) {
  return new Promise((resolve) => {
    const done = h(`button.${danger ? 'danger' : 'primary'}`, { textContent: action, onclick: () => dialog.close('yes') });
    const dialog = h(
      'dialog.dialog',
      { 'aria-label': title, onclose: () => (dialog.remove(), resolve(dialog.returnValue === 'yes')) },
      h('h2', { textContent: title }),
      h('p', { textContent: text }),
      h('div.dialog-actions', {}, h('button.secondary', { textContent: 'Cancel', onclick: () => dialog.close('') }), done),
    );
    document.body.append(dialog);
    dialog.showModal();
    done.focus();
  });
}

export function ask({ title, label, value, action }) {
  return new Promise((resolve) => {
    const input = h('input', { value, 'aria-label': label, maxlength: 120 });
    const dialog = h(
      'dialog.dialog',
      { 'aria-label': title, onclose: () => (dialog.remove(), resolve(dialog.returnValue === 'yes' ? input.value.trim() : null)) },
      h(
        'form',
        { method: 'dialog', onsubmit: (event) => (event.preventDefault(), dialog.close('yes')) },
        h('h2', { textContent: title }),
        input,
        h('div.dialog-actions', {}, h('button.secondary', { textContent: 'Cancel', onclick: () => dialog.close('') }), h('button.primary', { textContent: action, type: 'submit', onclick: () => dialog.close('yes') })),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
    input.select();
  });
}

const COMMAND = /Mac|iPhone|iPad/.test(navigator.platform) ? '⌘' : 'Ctrl';

const KEYS = [
  ['Enter', 'Send'],
  ['Shift Enter', 'New line'],
  ['Esc', 'Stop the agent'],
  ['↑', 'Earlier prompts'],
  ['/', 'The agent’s commands'],
  ['1 … 9', 'Choose, on a permission card'],
  [`${COMMAND} .`, 'Go to what waits for you'],
  [`${COMMAND} K`, 'Find a session'],
  [`${COMMAND} Shift O`, 'New session'],
  ['Alt ↑ / Alt ↓', 'Previous or next session'],
  ['Ctrl `', 'Raw frames'],
];

export function shortcuts() {
  const dialog = h(
    'dialog.dialog',
    { 'aria-label': 'Keyboard', onclose: () => dialog.remove() },
    h('h2', { textContent: 'Keyboard' }),
    h('dl.keys', {}, KEYS.map(([keys, words]) => [h('dt', {}, keys.split(' ').map((key) => h('kbd', { textContent: key }))), h('dd', { textContent: words })])),
    h('div.dialog-actions', {}, h('button.primary', { textContent: 'Done', onclick: () => dialog.close() })),
  );
  document.body.append(dialog);
  dialog.showModal();
}
