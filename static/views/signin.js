/** signin.js: one field, and words that say what is wrong with it. */
import { h, setText } from './dom.js';
import { mark } from './icons.js';

export function signInView({ message = '', onSubmit }) {
  const input = h('input', { type: 'password', id: 'token', name: 'token', autocomplete: 'current-password', placeholder: 'cf_…', spellcheck: 'false', required: true, 'aria-describedby': 'token-note' });
  const keep = h('input', { type: 'checkbox', id: 'keep' });
  const note = h('p.form-note', { id: 'token-note', role: 'alert', textContent: message });
  const button = h('button.primary.wide', { type: 'submit', textContent: 'Sign in' });
  const form = h(
    'form.signin',
    {
      async onsubmit(event) {
        event.preventDefault();
        button.disabled = true;
        setText(note, '');
        try {
          await onSubmit(input.value.trim(), keep.checked);
        } catch (error) {
          setText(note, error.status === 401 ? 'The server does not know this token.' : error.message);
          button.disabled = false;
          input.select();
        }
      },
    },
    h('div.signin-brand', {}, mark(), h('h1', { textContent: 'clawdforge' })),
    h('p.lede', { textContent: 'Coding agents, in real time.' }),
    h('label', { for: 'token', textContent: 'Access token' }),
    input,
    note,
    h('label.check', {}, keep, 'Keep me signed in on this device'),
    button,
    h('p.hint', { textContent: 'The server prints a sign-in link when it starts. Its administrator can make more tokens.' }),
  );
  return { el: h('main.signin-page', {}, form), focus: () => input.focus() };
}
