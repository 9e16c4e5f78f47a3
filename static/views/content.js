/** ACP content blocks that are not running text. */
import { codeBlock } from './code.js';
import { h, icon } from './dom.js';
import { bytes, pretty, shortPath } from './format.js';

export function contentBlock(block) {
	const { type, data, mimeType, uri, name, title, size, resource, text } = block ?? {};
	if (type === 'text') return h('p.plain', { text });
	if (type === 'resource_link') return fileChip(title || name || uri, uri, size);
	if (type === 'resource') {
		const label = shortPath(resource?.uri);
		return resource?.text == null ? fileChip(label) : h('details.raw', {}, h('summary', {}, icon('file'), label), codeBlock(resource.text, /\.(\w+)$/.exec(label)?.[1]).el);
	}
	if (type === 'image' || type === 'audio') {
		const src = data ? `data:${mimeType};base64,${data}` : uri;
		if (type === 'audio' || !safeImage(src)) return fileChip(`${type}, ${mimeType}`, uri);
		const image = h('img', { src, alt: 'Image', loading: 'lazy', decoding: 'async' });
		return h('button.image', { label: 'Image: show it larger or smaller', onclick: () => image.classList.toggle('full') }, image);
	}
	return codeBlock(pretty(block), 'json').el;
}

/** Only what is in the message itself or comes from this server. */
export function safeImage(src = '') {
	return /^data:image\/(png|jpeg|gif|webp|avif|svg\+xml)[;,]|^\/(?![/\\])/i.test(src);
}

export function fileChip(name, title, size) {
	return h('span.chip', { title }, icon('file'), h('span.ellipsis', { text: name }), size && h('small', { text: bytes(size) }));
}
