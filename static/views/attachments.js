import { h, icon, refill, say, setText } from './dom.js'
import { bytes } from './format.js'

const INLINE = /^image\/(png|jpeg|gif|webp)$/
const INLINE_ALL = 2_600_000
const uploaded = new Map()

export class Attachments {
	el
	upload
	constructor(el, upload, onchange, saved) {
		Object.assign(this, { el, upload, onchange: () => {}, items: [] })
		for (const item of saved ?? []) this.#show(item)
		this.onchange = onchange
	}

	get saved() {
		return this.items.map(({ block, token, name, size, error, state }) => ({
			block,
			token,
			name,
			size,
			...(state === 'ready' ? { state } : { state: 'failed', error: error ?? say('not') })
		}))
	}

	get blocked() {
		return this.items.some(({ state }) => state !== 'ready')
	}

	add(files) {
		for (const file of files) this.#start({ file, size: file.size, name: file.name || 'image', state: 'busy' })
	}

	put(blocks, files) {
		for (const block of blocks) {
			const { type, name = type, data, size = data?.length * 0.75 } = block
			this.#show({ block, name, size, state: 'ready' })
		}
		for (const token of files) this.#show({ token, name: 'file', ...uploaded.get(token), state: 'ready' })
	}

	// A file of the session's folder; it is attached once
	link(block) {
		if (!this.items.some(({ block: other }) => other?.uri === block.uri)) this.put([block], [])
	}

	#show(item) {
		item.el = this.el.appendChild(h('li.chip'))
		this.items.push(item)
		this.#draw(item)
	}

	async #start(item) {
		const { file } = item
		this.#show(item)
		try {
			const inline = this.items.reduce((sum, { job, block, size = 0 }) => sum + (job || block?.uri ? 0 : size), 0)
			if (INLINE.test(file.type) && inline <= INLINE_ALL) {
				item.block = { type: 'image', mimeType: file.type, data: await base64(file) }
			} else {
				item.job = this.upload(file, part => {
					item.bar.value = part
					setText(item.note, `${Math.round(part * 100)} %`)
				})
				item.token = (await item.job.done).file_token
				uploaded.set(item.token, { name: item.name, size: item.size })
			}
			item.state = 'ready'
		} catch (error) {
			Object.assign(item, { state: 'failed', error: error.message })
		}
		this.#draw(item)
	}

	#draw(item) {
		const { name, size, state, error, block } = item
		item.note = h('small', { text: error ?? (size && state === 'ready' ? bytes(size) : '') })
		item.bar = h('progress', { max: 1, label: `Uploading ${name}` })
		item.el.dataset.state = state
		refill(
			item.el,
			block?.type === 'image'
				? h('img', { src: `data:${block.mimeType};base64,${block.data}`, alt: '' })
				: icon(error ? 'alert' : 'file'),
			h('span.ellipsis', { text: name, title: name }),
			item.note,
			h('button.icon-button', { label: `Remove ${name}`, onclick: () => this.#remove(item) }, icon('close')),
			state === 'busy' ? item.bar : ''
		)
		this.#changed()
	}

	#remove(item) {
		item.job?.abort()
		this.items = this.items.filter(one => one !== item)
		item.el.remove()
		this.#changed()
	}

	#changed() {
		this.el.hidden = !this.items.length
		this.onchange()
	}

	get contents() {
		const all = name => this.items.map(item => item[name]).filter(Boolean)
		return { blocks: all('block'), files: all('token') }
	}

	clear() {
		for (const item of this.items) this.#remove(item)
	}
}

export async function base64(blob) {
	const reader = new FileReader()
	await new Promise((resolve, reject) => {
		Object.assign(reader, { onload: resolve, onerror: reject })
		reader.readAsDataURL(blob)
	})
	return String(reader.result).split(',')[1]
}
