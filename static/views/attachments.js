/**
 * attachments.js: files that go with a prompt.
 *
 * Images go inside the prompt as ACP image blocks, made smaller if they must be;
 * everything else is uploaded, and the prompt names it by its token.
 */
import { h, setAttr, setText } from './dom.js';
import { icon } from './icons.js';
import { bytes } from './format.js';

const INLINE = /^image\/(png|jpeg|gif|webp)$/;
const INLINE_EACH = 1_000_000; // bytes; larger images are scaled down first
const INLINE_ALL = 2_600_000; //  a frame takes 4 MiB, base64 adds a third
const LONGEST_SIDE = 1600;

export class Attachments {
  constructor({ upload, onChange }) {
    this.upload = upload;
    this.onChange = onChange;
    this.items = [];
    this.el = h('ul.attachments', { 'aria-label': 'Attached files', hidden: true });
  }

  get busy() {
    return this.items.some((item) => item.state === 'busy');
  }
  get failed() {
    return this.items.some((item) => item.state === 'failed');
  }

  add(files) {
    for (const file of files) this.#start({ file, name: file.name || 'pasted image', state: 'busy' });
    this.#changed();
  }

  async #start(item) {
    this.items.push(item);
    item.el = h('li.attachment');
    this.#draw(item);
    this.el.append(item.el);
    try {
      const inline = INLINE.test(item.file.type) ? await this.#inline(item.file) : null;
      if (inline) {
        Object.assign(item, { block: inline.block, size: inline.size, preview: URL.createObjectURL(inline.blob) });
      } else {
        item.job = this.upload(item.file, (part) => {
          item.progress = part;
          this.#draw(item);
        });
        const answer = await item.job.done;
        item.token = answer.file_token;
        item.size = answer.size;
      }
      item.state = 'ready';
    } catch (error) {
      if (error.code === 'aborted') return;
      item.state = 'failed';
      item.error = error.message;
    }
    this.#draw(item);
    this.#changed();
  }

  async #inline(file) {
    const used = this.items.reduce((sum, item) => sum + (item.block ? item.size : 0), 0);
    const blob = file.size > INLINE_EACH && file.type !== 'image/gif' ? await smaller(file) : file;
    if (!blob || used + blob.size > INLINE_ALL) return null;
    return { blob, size: blob.size, block: { type: 'image', mimeType: blob.type, data: await base64(blob) } };
  }

  remove(item) {
    item.job?.abort();
    if (item.preview) URL.revokeObjectURL(item.preview);
    this.items = this.items.filter((one) => one !== item);
    item.el.remove();
    this.#changed();
  }

  /** What goes into the prompt; empties the list. */
  take() {
    const ready = this.items.filter((item) => item.state === 'ready');
    const taken = { blocks: ready.filter((item) => item.block).map((item) => item.block), files: ready.filter((item) => item.token).map((item) => item.token), names: ready.map((item) => item.name) };
    for (const item of [...this.items]) this.remove(item);
    return taken;
  }

  #changed() {
    this.el.hidden = !this.items.length;
    this.onChange();
  }

  #draw(item) {
    if (item.drawn !== item.state) {
      item.drawn = item.state;
      item.bar = h('progress', { max: 1, 'aria-label': `Uploading ${item.name}` });
      item.note = h('small');
      item.el.className = `attachment ${item.state}`;
      item.el.replaceChildren(
        item.preview ? h('img', { src: item.preview, alt: '' }) : icon(item.state === 'failed' ? 'alert' : 'file'),
        h('span.attachment-words', {}, h('span', { textContent: item.name, title: item.name }), item.note),
        ...(item.state === 'busy' ? [item.bar] : []),
        ...(item.state === 'failed' ? [h('button.quiet', { textContent: 'Retry', onclick: () => this.#retry(item) })] : []),
        h('button.icon-button', { 'aria-label': `Remove ${item.name}`, onclick: () => this.remove(item) }, icon('close')),
      );
    }
    if (item.progress != null) setAttr(item.bar, 'value', item.progress);
    setText(item.note, item.state === 'failed' ? item.error : item.state === 'busy' ? (item.progress == null ? '' : `${Math.round(item.progress * 100)} %`) : bytes(item.size ?? item.file.size));
  }

  #retry(item) {
    this.remove(item);
    this.add([item.file]);
  }
}

async function smaller(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = h('canvas');
    canvas.width = Math.round(bitmap.width * scale);
    canvas.height = Math.round(bitmap.height * scale);
    canvas.getContext('2d').drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve) => canvas.toBlob(resolve, 'image/jpeg', 0.88));
  } catch {
    return null; // not an image that this browser can read: then it is just a file
  }
}

function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(',') + 1));
    reader.onerror = () => reject(new Error('The file could not be read.'));
    reader.readAsDataURL(blob);
  });
}
