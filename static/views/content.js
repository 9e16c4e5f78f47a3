/** content.js: ACP content blocks that are not running text. */
import { h } from './dom.js';
import { icon } from './icons.js';
import { bytes, shortPath } from './format.js';
import { safeImage } from './markdown.js';
import { codeBlock } from './code.js';

export function contentBlock(block) {
  switch (block?.type) {
    case 'image':
      return imageBlock(block);
    case 'audio':
      return h('p.chip', {}, icon('file'), `Audio, ${block.mimeType ?? 'unknown type'}`);
    case 'resource_link':
      return fileChip(block.title || block.name || block.uri, block.uri, block.size);
    case 'resource': {
      const { uri, text, mimeType } = block.resource ?? {};
      if (text == null) return fileChip(shortPath(uri), uri);
      return h('details.resource', {}, h('summary', {}, icon('file'), shortPath(uri)), codeBlock(text, languageOf(uri, mimeType)).el);
    }
    case 'text':
      return h('p.plain', { textContent: block.text });
    default:
      return codeBlock(JSON.stringify(block, null, 2), 'json').el;
  }
}

function imageBlock({ data, mimeType, uri }) {
  const src = data ? `data:${mimeType};base64,${data}` : uri;
  if (!safeImage(src)) return fileChip(`Image, ${mimeType ?? 'unknown type'}`, uri);
  const image = h('img', { src, alt: 'Image', loading: 'lazy', decoding: 'async' });
  return h('button.image', { 'aria-label': 'Show the image in full', onclick: () => zoom(src) }, image);
}

export function fileChip(name, title, size) {
  return h('span.chip', { title }, icon('file'), h('span', { textContent: name }), size ? h('small', { textContent: bytes(size) }) : null);
}

function zoom(src) {
  const dialog = h('dialog.zoom', { 'aria-label': 'Image', onclick: () => dialog.close(), onclose: () => dialog.remove() }, h('img', { src, alt: 'Image' }), h('button.icon-button', { 'aria-label': 'Close' }, icon('close')));
  document.body.append(dialog);
  dialog.showModal();
}

const EXTENSIONS = /\.([a-z0-9]+)$/i;

/** highlight.js knows most file endings as names of languages. */
export function languageOf(path, mimeType = '') {
  return EXTENSIONS.exec(path ?? '')?.[1]?.toLowerCase() ?? mimeType.split('/')[1] ?? '';
}
