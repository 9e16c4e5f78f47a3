/** Files that go with a prompt: images that fit as ACP image blocks, others uploaded. */
import { h, icon, setText } from './dom.js';
import { bytes } from './format.js';

const INLINE = /^image\/(png|jpeg|gif|webp)$/;
const INLINE_ALL = 2_600_000;

export class Attachments {
	constructor(el, upload, onchange) {
		Object.assign(this, { el, upload, onchange, items: [] });
	}

	get blocked() {
		return this.items.some(({ state }) => state !== 'ready');
	}

	add(files) {
		for (const file of files) this.#start({ file, name: file.name || 'image', state: 'busy' });
	}

	async #start(item) {
		const { file } = item;
		item.el = this.el.appendChild(h('li.chip'));
		this.items.push(item);
		this.#draw(item);
		try {
			const inline = this.items.reduce((sum, { image }) => sum + (image?.size ?? 0), file.size);
			if (INLINE.test(file.type) && inline <= INLINE_ALL) {
				item.image = file; // which the next one counts, before it is read
				item.data = await base64(file);
			} else {
				item.job = this.upload(file, (part) => {
					item.bar.value = part;
					setText(item.note, `${Math.round(part * 100)} %`);
				});
				item.token = (await item.job.done).file_token;
			}
			item.state = 'ready';
		} catch (error) {
			Object.assign(item, { state: 'failed', error: error.message });
		}
		this.#draw(item);
	}

	#draw(item) {
		const { name, state, error, data, file } = item;
		item.note = h('small', { text: error ?? (state === 'busy' ? '' : bytes(file.size)) });
		item.bar = h('progress', { max: 1, label: `Uploading ${name}` });
		item.el.dataset.state = state;
		item.el.replaceChildren(
			data ? h('img', { src: `data:${file.type};base64,${data}`, alt: '' }) : icon(error ? 'alert' : 'file'),
			h('span.ellipsis', { text: name, title: name }),
			item.note,
			h('button.icon-button', { label: `Remove ${name}`, onclick: () => this.#remove(item) }, icon('close')),
			state === 'busy' ? item.bar : '',
		);
		this.#changed();
	}

	#remove(item) {
		item.job?.abort();
		this.items = this.items.filter((one) => one !== item);
		item.el.remove();
		this.#changed();
	}

	#changed() {
		this.el.hidden = !this.items.length;
		this.onchange();
	}

	take() {
		const blocks = this.items.filter(({ data }) => data).map(({ data, file }) => ({ type: 'image', mimeType: file.type, data }));
		const files = this.items.map(({ token }) => token).filter(Boolean);
		for (const item of this.items) this.#remove(item);
		return { blocks, files };
	}
}

async function base64(blob) {
	const reader = new FileReader();
	await new Promise((resolve, reject) => {
		Object.assign(reader, { onload: resolve, onerror: reject });
		reader.readAsDataURL(blob);
	});
	return reader.result.slice(reader.result.indexOf(',') + 1);
}
