/** code.js: a block of code with its language, a copy button, and colours from a worker. */
import { copyText, h } from './dom.js';
import { icon } from './icons.js';

const MAX_HIGHLIGHT = 60_000; // characters; longer code stays plain
const LIVE_EVERY = 400; //       ms between colourings of code that still grows
const LIVE_MAX = 12_000;

// ---- colours ------------------------------------------------------------------

let worker = null;
let asked = 0;
const waiting = new Map();

/** Colouring takes time that streaming and scrolling need: it happens elsewhere. */
function colours(code, language) {
  if (!worker) {
    try {
      worker = new Worker('/static/highlight.worker.js', { type: 'module' });
    } catch {
      return Promise.resolve(null);
    }
    worker.onmessage = ({ data }) => {
      waiting.get(data.id)?.(data.tokens);
      waiting.delete(data.id);
    };
    worker.onerror = () => {
      for (const settle of waiting.values()) settle(null);
      waiting.clear();
    };
  }
  asked += 1;
  const id = asked;
  return new Promise((resolve) => {
    waiting.set(id, resolve);
    worker.postMessage({ id, code, language });
  });
}

/** Off-screen code can wait until someone comes near it. */
const near =
  typeof IntersectionObserver === 'undefined'
    ? null
    : new IntersectionObserver(
        (entries) => {
          for (const entry of entries) {
            if (!entry.isIntersecting) continue;
            near.unobserve(entry.target);
            paint(entry.target);
          }
        },
        { rootMargin: '600px' },
      );

const languages = new WeakMap(); // code element -> language, while it is uncoloured

async function paint(code) {
  const text = code.textContent;
  const tokens = await colours(text, languages.get(code));
  if (!tokens || !code.isConnected || !code.textContent.startsWith(text)) return;
  // Text may have come while the worker worked: it stays, uncoloured.
  const rest = code.textContent.slice(text.length);
  const nodes = tokens.map(([className, part]) => (className ? h('span', { class: className, textContent: part }) : document.createTextNode(part)));
  code.replaceChildren(...nodes, document.createTextNode(rest));
}

// ---- the block ------------------------------------------------------------------

/**
 * `growing` blocks take append(text) until finish(); the others are complete.
 * The height only ever changes by the lines that are added.
 */
export function codeBlock(text, language = '', growing = false) {
  const code = h('code', {}, text);
  const pre = h('pre', { tabIndex: 0, role: 'region', 'aria-label': language ? `Code, ${language}` : 'Code' }, code);
  const el = h('figure.code', {}, h('figcaption', {}, h('span', { textContent: language || 'text' }), copyButton(() => code.textContent)), pre);
  languages.set(code, language);
  let length = text.length;
  let timer = 0;
  const colourable = Boolean(language);
  if (!growing) {
    code.textContent = text.replace(/\n$/, '');
    if (colourable && text.length < MAX_HIGHLIGHT) near?.observe(code);
  }
  return {
    el,
    append(more) {
      if (!more) return;
      const last = code.lastChild;
      if (last?.nodeType === Node.TEXT_NODE) last.appendData(more);
      else code.append(more);
      length += more.length;
      if (colourable && length < LIVE_MAX) {
        timer ||= setTimeout(() => {
          timer = 0;
          paint(code);
        }, LIVE_EVERY);
      }
    },
    finish() {
      clearTimeout(timer);
      if (colourable && length < MAX_HIGHLIGHT) near?.observe(code);
    },
  };
}

export function copyButton(text, label = 'Copy') {
  const words = h('span', { textContent: label });
  const button = h('button.quiet.copy', { 'aria-label': label, onclick: copy }, icon('copy'), words);
  let timer = 0;
  async function copy() {
    const done = await copyText(text());
    words.textContent = done ? 'Copied' : 'Failed';
    button.classList.add('done');
    clearTimeout(timer);
    timer = setTimeout(() => {
      words.textContent = label;
      button.classList.remove('done');
    }, 1500);
  }
  return button;
}
