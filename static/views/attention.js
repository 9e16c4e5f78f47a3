/**
 * attention.js: the tab's title, its icon, a notification, and what a screen
 * reader is told. All of them say the same: working, done, or waiting for you.
 */
import { h, setText } from './dom.js';
import { MARK } from './icons.js';

const BADGE = { idle: '', running: '#3b82f6', waiting: '#f59e0b' };

export class Attention {
  constructor(preferences) {
    this.preferences = preferences;
    this.link = document.querySelector('link[rel="icon"]');
    this.icon = null;
    this.spoken = h('div.offscreen', { role: 'status', 'aria-live': 'polite' });
    this.urgent = h('div.offscreen', { role: 'alert' });
    document.body.append(this.spoken, this.urgent);
  }

  /** `state`: idle, running or waiting, of all open sessions together. */
  show(state, title) {
    const words = { idle: '', running: 'Working · ', waiting: 'Waiting for you · ' }[state];
    const full = `${words}${title || 'clawdforge'}`;
    if (document.title !== full) document.title = full;
    if (this.icon === state) return;
    this.icon = state;
    this.link.href = favicon(BADGE[state]);
  }

  say(text) {
    setText(this.spoken, text);
  }
  alert(text) {
    setText(this.urgent, text);
  }

  /** Only if it was allowed, and only to someone who is looking elsewhere. */
  notify(title, body, onclick) {
    if (!this.preferences().notify || typeof Notification === 'undefined' || Notification.permission !== 'granted') return;
    if (document.visibilityState === 'visible' && document.hasFocus()) return;
    try {
      const note = new Notification(title, { body, tag: title, icon: '/static/favicon.svg' });
      note.onclick = () => {
        window.focus();
        onclick();
        note.close();
      };
    } catch {
      // Android's Chrome has the constructor but wants a service worker
    }
  }
}

function favicon(badge) {
  const dot = badge ? `<circle cx="25" cy="25" r="7" fill="${badge}" stroke="#fff" stroke-width="2"/>` : '';
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#b4471a"/><path d="${MARK}" transform="translate(3.500 4)" fill="none" stroke="#fff" stroke-width="2.400" stroke-linecap="round"/>${dot}</svg>`;
  return `data:image/svg+xml,${encodeURIComponent(svg)}`;
}
