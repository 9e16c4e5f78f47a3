/** One field, and words that say what is wrong with it. */
import { h, icon, setText } from './dom.js';

export function signInView(message, token, signIn) {
	const input = h('input', { type: 'password', id: 'token', value: token, autocomplete: 'current-password', placeholder: 'cf_…', required: true, 'aria-describedby': 'token-note' });
	const keep = h('input', { type: 'checkbox' });
	const note = h('p.form-note', { id: 'token-note', role: 'alert', text: message });
	const button = h('button.primary', { type: 'submit', text: 'Sign in' });
	async function onsubmit(event) {
		event.preventDefault();
		button.disabled = true;
		try {
			await signIn(input.value.trim(), keep.checked);
		} catch (error) {
			setText(note, error.status === 401 ? 'The server does not know this token.' : error.message);
			input.select();
		}
		button.disabled = false;
	}
	const form = h(
		'form.signin',
		{ onsubmit },
		h('h1', {}, icon('mark'), 'clawdforge'),
		h('p.lede', { text: 'Coding agents, in real time.' }),
		h('label', { for: 'token', text: 'Access token' }),
		h('input.offscreen', { autocomplete: 'username', value: 'clawdforge', tabIndex: -1, 'aria-hidden': 'true' }),
		input,
		note,
		h('label.check', {}, keep, 'Keep me signed in on this device'),
		button,
		h('p.hint', { text: 'The server prints a sign-in link when it first starts. Its administrator can make more tokens.' }),
	);
	return { el: h('main.signin-page', {}, form), focus: () => input.focus() };
}
