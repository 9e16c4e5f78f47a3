/** toast.js: a sentence that comes and goes. */
import { h } from './dom.js';

const SHOWN = 6000;

export class Toasts {
  constructor() {
    this.el = h('div.toasts', { role: 'status', 'aria-live': 'polite' });
  }

  show(text) {
    const toast = h('p.toast', { textContent: text, onclick: () => toast.remove() });
    this.el.replaceChildren(toast); // one at a time is enough
    setTimeout(() => toast.remove(), SHOWN);
  }
}
