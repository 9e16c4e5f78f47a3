/** Small modal questions, on the browser's own <dialog>; and a sentence that comes and goes. */
import { h } from './dom.js';

export function ask({ title, text, input, action, danger }) {
	return new Promise((resolve) => {
		const field = input !== undefined && h('input', { value: input, label: title, maxlength: 120 });
		const onsubmit = (event) => {
			event.preventDefault();
			dialog.close('yes');
		};
		const onclose = () => {
			dialog.remove();
			resolve(dialog.returnValue !== 'yes' ? null : field ? field.value.trim() : true);
		};
		const buttons = [h('button.secondary', { text: 'Cancel', onclick: () => dialog.close('') }), h(`button.${danger ? 'danger' : 'primary'}`, { text: action, type: 'submit', autofocus: !field })];
		const dialog = document.body.appendChild(h('dialog.dialog', { label: title, onclose }, h('form', { onsubmit }, h('h2', { text: title }), text && h('p', { text }), field, h('div.dialog-actions', {}, buttons))));
		dialog.showModal();
		if (field) field.select();
	});
}

const toasts = document.body.appendChild(h('div.toasts', { role: 'status' }));

export function toast(text) {
	const one = h('p', { text, onclick: () => one.remove() });
	toasts.replaceChildren(one);
	setTimeout(() => one.remove(), 6000);
}
