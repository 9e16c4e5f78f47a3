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
		const src = safeImage(data ? `data:${mimeType};base64,${data}` : uri)
		if (type === 'audio' || !src) return fileChip(`${type}, ${mimeType}`, uri)
		const { el, image } = template('image')
		image.src = src
		el.onclick = () => image.classList.toggle('full')
		return el
	}
	return codeBlock(pretty(data), 'json').el
}

const PICTURE = /^data:image\/(png|jpeg|gif|webp|avif|svg\+xml)[;,]/i

export function safeImage(src) {
	// A browser drops tabs and line ends and turns backslashes.
	if (typeof src !== 'string' || !URL.canParse(src, location.origin)) return ''
	const { href, origin, protocol } = new URL(src, location.origin)
	if (protocol === 'data:') return PICTURE.test(href) ? href : ''
	return origin === location.origin && /^[\s\0-\x20]*\//.test(src) ? href : ''
}

export function fileChip(name, title, size) {
	return h(
		'span.chip',
		{ title },
		icon('file'),
		h('span.ellipsis', { text: name }),
		size && h('small', { text: bytes(size) })
	)
}
