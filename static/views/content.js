import { block as checked, pretty } from '../normalise.js'
import { codeBlock } from './code.js'
import { h, icon, template } from './dom.js'
import { bytes, languageOf, shortPath } from './format.js'

const MAX_RESOURCE = 1_000_000 // characters

export function contentBlock(given) {
	const block = given?.type === 'raw' ? given : checked(given)
	const { type, data, mimeType, uri, name, title, size, resource, text } = block
	if (type === 'text') return h('p.plain', { dir: 'auto', prose: text })
	if (type === 'resource_link') return fileChip(title || name || uri || 'link', uri, size)
	if (type === 'resource') {
		const label = shortPath(resource.uri) || 'resource'
		return resource.text == null
			? fileChip(label, resource.uri)
			: h(
					'details.raw',
					{},
					h('summary', {}, icon('file'), label),
					codeBlock(pretty(resource.text, MAX_RESOURCE), languageOf(label)).el
				)
	}
	if (type === 'image' || type === 'audio') {
		const inline = data && `data:${mimeType};base64,${data}`
		if (type === 'audio' && AUDIO.test(inline)) return h('audio', { src: inline, controls: '', label: mimeType })
		const src = safeImage(inline || uri)
		if (type === 'audio' || !src) return fileChip(`${type}, ${mimeType}`, uri)
		const { el, image } = template('image')
		image.src = src
		el.onclick = () => image.classList.toggle('full')
		return el
	}
	return codeBlock(pretty(data), 'json').el
}

const AUDIO = /^data:audio\/[\w.+-]+;base64,/i
const PICTURE = /^data:image\/(png|jpeg|gif|webp|avif|svg\+xml)[;,]/i

export function safeImage(src) {
	// A browser drops tabs and line ends and turns backslashes.
	if (typeof src !== 'string' || !URL.canParse(src, location.origin)) return ''
	const { href, origin, protocol } = new URL(src, location.origin)
	if (protocol === 'data:') return PICTURE.test(href) ? href : ''
	return origin === location.origin && /^[\s\0-\x20]*\//.test(src) ? href : ''
}

// A file opens beside the conversation, a website in a tab of its own
export function fileChip(name, uri, size) {
	const { protocol, host, href } = URL.parse(uri, 'file://') ?? {}
	const website = /^https?:$/.test(protocol) && host !== location.host
	const inside = [
		icon(website ? 'globe' : 'file'),
		h('span.ellipsis', { text: name }),
		h('small', { text: website ? host : size ? bytes(size) : '' })
	]
	if (website) return h('a.chip', { href, title: href, target: '_blank', rel: 'noopener noreferrer' }, inside)
	if (!uri || protocol !== 'file:') return h('span.chip', { title: uri }, inside)
	const open = new CustomEvent('openfile', { bubbles: true, detail: uri })
	return h('button.chip', { title: uri, onclick: ({ currentTarget }) => currentTarget.dispatchEvent(open) }, inside)
}
