/** terminal.js: output of commands as a terminal would show it, within reason. */
import { h } from './dom.js';

const MAX_LINES = 2000;
const BASE = ['black', 'red', 'green', 'yellow', 'blue', 'magenta', 'cyan', 'white'];
// CSI (colours and cursor), OSC (titles, links), and the short escapes.
// eslint-disable-next-line no-control-regex
const ESCAPE = /\x1b\[([0-9;:?]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_()][A-Z0-9]?/g;

export class TerminalView {
  constructor(label = 'Output') {
    this.body = h('code');
    this.el = h('pre.terminal', { tabIndex: 0, role: 'region', 'aria-label': label }, this.body);
    this.shown = ''; //  text taken so far
    this.pending = ''; // an escape sequence that is not whole yet
    this.style = { classes: new Set() };
    this.line = null;
    this.follow = true;
    this.el.addEventListener('scroll', () => {
      this.follow = this.el.scrollHeight - this.el.scrollTop - this.el.clientHeight < 8;
    });
    this.#newLine();
  }

  /** `text` is all of the output; what was shown before is its beginning. */
  update(text) {
    if (text.length === this.shown.length) return;
    if (!text.startsWith(this.shown)) this.#clear();
    this.#write(text.slice(this.shown.length));
    this.shown = text;
    if (this.follow && this.el.isConnected) this.el.scrollTop = this.el.scrollHeight;
  }

  #write(more) {
    let text = this.pending + more;
    // Hold back an escape sequence whose end has not come yet.
    const open = text.lastIndexOf('\x1b');
    this.pending = '';
    if (open >= 0 && text.length - open < 64 && !new RegExp(ESCAPE.source).test(text.slice(open))) {
      this.pending = text.slice(open);
      text = text.slice(0, open);
    }
    let at = 0;
    for (const match of text.matchAll(ESCAPE)) {
      this.#print(text.slice(at, match.index));
      at = match.index + match[0].length;
      if (match[2] === 'm') this.#sgr(match[1]);
      else if (match[2] === 'K') this.line.replaceChildren(); // progress bars erase their line
      else if (match[2] === 'J' && /[23]/.test(match[1])) this.#clear();
    }
    this.#print(text.slice(at));
  }

  #print(text) {
    for (const piece of text.split(/(\r\n|\n|\r)/)) {
      if (piece === '') continue;
      if (piece === '\n' || piece === '\r\n') {
        this.#newLine();
      } else if (piece === '\r') {
        this.returned = true; // the next print writes over this line
      } else {
        if (this.returned) this.line.replaceChildren();
        this.returned = false;
        // eslint-disable-next-line no-control-regex
        const clean = piece.replace(/[\x00-\x08\x0b-\x1f\x7f]/g, '');
        this.line.append(this.#styled(clean));
      }
    }
  }

  #newLine() {
    this.returned = false;
    if (this.line) this.line.append('\n');
    this.line = h('span');
    this.body.append(this.line);
    if (this.body.childNodes.length > MAX_LINES) this.body.firstChild.remove();
  }

  #styled(text) {
    const { classes, color, background } = this.style;
    if (!classes.size && !color && !background) return document.createTextNode(text);
    const span = h('span', { textContent: text });
    span.classList.add(...classes);
    if (color) span.style.color = color;
    if (background) span.style.backgroundColor = background;
    return span;
  }

  #sgr(params) {
    const codes = (params || '0').split(/[;:]/).map(Number);
    const { style } = this;
    const swap = (prefix, name) => {
      for (const one of style.classes) if (one.startsWith(prefix)) style.classes.delete(one);
      if (name) style.classes.add(prefix + name);
    };
    for (let i = 0; i < codes.length; i += 1) {
      const code = codes[i];
      if (code === 0) {
        style.classes.clear();
        style.color = style.background = null;
      } else if (code === 1) style.classes.add('t-bold');
      else if (code === 2) style.classes.add('t-dim');
      else if (code === 3) style.classes.add('t-italic');
      else if (code === 4) style.classes.add('t-under');
      else if (code === 22) ['t-bold', 't-dim'].forEach((name) => style.classes.delete(name));
      else if (code === 23) style.classes.delete('t-italic');
      else if (code === 24) style.classes.delete('t-under');
      else if (code >= 30 && code <= 37) swap('t-fg-', BASE[code - 30]);
      else if (code >= 90 && code <= 97) swap('t-fg-', BASE[code - 90]);
      else if (code >= 40 && code <= 47) swap('t-bg-', BASE[code - 40]);
      else if (code === 39) {
        swap('t-fg-');
        style.color = null;
      } else if (code === 49) {
        swap('t-bg-');
        style.background = null;
      } else if (code === 38 || code === 48) {
        const name = code === 38 ? 'color' : 'background';
        if (codes[i + 1] === 5) {
          style[name] = indexed(codes[i + 2]);
          i += 2;
        } else if (codes[i + 1] === 2) {
          style[name] = `rgb(${codes[i + 2] | 0} ${codes[i + 3] | 0} ${codes[i + 4] | 0})`;
          i += 4;
        }
      }
    }
  }

  #clear() {
    this.body.replaceChildren();
    this.line = null;
    this.style = { classes: new Set() };
    this.shown = '';
    this.#newLine();
  }
}

/** xterm's 256 colours beyond the named ones: a cube of 6 and 24 greys. */
function indexed(index) {
  if (index < 16) return null;
  if (index > 231) {
    const grey = 8 + (index - 232) * 10;
    return `rgb(${grey} ${grey} ${grey})`;
  }
  const level = (step) => (step ? 55 + step * 40 : 0);
  const cube = index - 16;
  return `rgb(${level(Math.floor(cube / 36))} ${level(Math.floor(cube / 6) % 6)} ${level(cube % 6)})`;
}
