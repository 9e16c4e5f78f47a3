/**
 * markdown.js: Markdown that grows.
 *
 * An agent's message arrives in hundreds of pieces. Rendering all of it again
 * for each would be quadratic and would flicker, so a MarkdownView keeps what is
 * finished: blocks that later text can no longer change are rendered once and
 * stay; only the open block at the end is rendered again, and a code fence that
 * is still open only gets text appended.
 *
 * The text is hostile. Raw HTML in it is shown as text (it mostly is code that
 * someone talks about); what marked makes of the rest goes through DOMPurify
 * with a short list of tags, and links and images are held to their own rules.
 */
import { Lexer, Parser, Renderer } from 'marked';
import DOMPurify from 'dompurify';
import { codeBlock } from './code.js';
import { h } from './dom.js';

const STEP = 16_384; //     longest stretch that is parsed at once
const MAX_BLOCK = 24_576; // a paragraph longer than this is shown as plain text
const SETTLED = 12; //      characters of a next block after which the one before is final

// ---- from Markdown to safe nodes --------------------------------------------

const renderer = new Renderer();
renderer.html = ({ text }) => escapeHtml(text);
renderer.heading = function ({ tokens, depth }) {
  const level = Math.min(6, depth + 2); // h1 and h2 are the page's own
  return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
};
renderer.checkbox = ({ checked }) => (checked ? '☑ ' : '☐ ');
renderer.code = ({ text, lang }) => `<pre title="${escapeHtml((lang ?? '').split(/\s/)[0])}">${escapeHtml(text)}</pre>`;
renderer.image = ({ href, text }) => {
  const label = escapeHtml(text || 'image');
  if (safeImage(href)) return `<img src="${escapeHtml(href)}" alt="${label}">`;
  const link = safeLink(href); // never fetched from elsewhere: offered as a link
  return link ? `<a href="${escapeHtml(link)}">${label}</a>` : label;
};
renderer.link = function ({ href, tokens }) {
  const inner = this.parser.parseInline(tokens);
  const link = safeLink(href);
  return link ? `<a href="${escapeHtml(link)}">${inner}</a>` : `<span>${inner}</span>`;
};

const OPTIONS = { renderer, gfm: true, breaks: false };

const ALLOWED = {
  ALLOWED_TAGS: ['p', 'br', 'hr', 'h3', 'h4', 'h5', 'h6', 'strong', 'em', 'del', 'code', 'pre', 'blockquote', 'ul', 'ol', 'li', 'a', 'span', 'img', 'table', 'thead', 'tbody', 'tr', 'th', 'td'],
  ALLOWED_ATTR: ['href', 'src', 'alt', 'title', 'align', 'start'],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** http, https and mailto to elsewhere; a link into this page could carry a token. */
function safeLink(href) {
  try {
    const url = new URL(href);
    if (url.protocol === 'mailto:') return url.href;
    return (url.protocol === 'https:' || url.protocol === 'http:') && url.host !== location.host ? url.href : null;
  } catch {
    return null; // relative paths mean files on the agent's side
  }
}

export function safeImage(src) {
  if (/^data:image\/(png|jpeg|gif|webp|avif|svg\+xml)[;,]/i.test(src)) return true;
  try {
    const url = new URL(src, location.href);
    return url.origin === location.origin && url.protocol.startsWith('http') && src.startsWith('/');
  } catch {
    return false;
  }
}

function escapeHtml(text) {
  return text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);
}

function renderTokens(tokens) {
  const fragment = DOMPurify.sanitize(Parser.parse(tokens, OPTIONS), ALLOWED);
  for (const pre of fragment.querySelectorAll('pre')) pre.replaceWith(codeBlock(pre.textContent, pre.title).el);
  for (const table of fragment.querySelectorAll('table')) {
    const wrap = h('div.table', { tabIndex: 0, role: 'group', 'aria-label': 'Table' });
    table.replaceWith(wrap);
    wrap.append(table);
  }
  for (const link of fragment.querySelectorAll('a')) {
    link.target = '_blank';
    link.rel = 'noopener noreferrer';
  }
  for (const image of fragment.querySelectorAll('img')) image.loading = 'lazy';
  return fragment;
}

// ---- the growing view ---------------------------------------------------------

export class MarkdownView {
  constructor() {
    this.el = h('div.md');
    this.committed = 0; // everything before this offset is final
    this.tail = []; //     nodes of the open block
    this.fence = null; //  the open code fence, if that is where we are
    this.links = {}; //    reference definitions seen so far
    this.cost = 0; //      what the last rendering of the tail took, ms
    this.nextAt = 0;
    this.shown = '';
  }

  /** Shows `text`, which begins with what was shown before. False: call again later. */
  update(text, done = false) {
    if (text.includes('\r')) text = text.replace(/\r\n?/g, '\n');
    if (text === this.shown && !done) return true;
    // A block that is costly to render is rendered less often, never a frame late.
    if (!done && performance.now() < this.nextAt) return false;
    const begun = performance.now();
    for (let end = Math.min(text.length, this.committed + STEP); ; end = Math.min(text.length, end + STEP)) {
      this.#feed(text.slice(0, end), done && end === text.length);
      if (end >= text.length) break;
    }
    this.shown = text;
    this.cost = performance.now() - begun;
    this.nextAt = performance.now() + (this.cost > 4 ? this.cost * 6 : 0);
    return true;
  }

  #feed(text, done) {
    // A fence may end within the text, and other blocks follow it.
    while (this.fence ? this.#feedFence(text, done) : this.#feedBlocks(text, done));
  }

  /** True if there is more to do with the same text. */
  #feedBlocks(text, done) {
    const rest = text.slice(this.committed);
    const visible = done ? rest : heal(rest);
    const lexer = new Lexer(OPTIONS);
    Object.assign(lexer.tokens.links, this.links);
    const tokens = lexer.lex(visible);
    this.links = tokens.links;

    let last = tokens.length - 1;
    while (last >= 0 && tokens[last].type === 'space') last -= 1;
    const final = done ? tokens.length : this.#finalCount(tokens, last);
    this.#clearTail();
    if (final > 0) {
      this.el.append(this.#render(tokens.slice(0, final), tokens.links));
      for (const token of tokens.slice(0, final)) this.committed += token.raw.length;
    }
    if (final > last) return false;
    const open = tokens[last];
    const mark = open.type === 'code' && /^ {0,3}(`{3,}|~{3,})/.exec(open.raw);
    if (mark && tokens.slice(final, last).every((token) => token.type === 'space')) {
      const newline = open.raw.indexOf('\n');
      if (newline < 0) return false; // its language is still being written
      for (const token of tokens.slice(final, last)) this.committed += token.raw.length;
      const block = codeBlock('', open.lang?.split(/\s/)[0] ?? '', true);
      this.el.append(block.el);
      const at = this.committed + newline + 1;
      this.fence = { block, mark: mark[1], at, line: at };
      return true;
    }
    this.tail = [...this.#render(tokens.slice(final), tokens.links).childNodes];
    this.el.append(...this.tail);
    return false;
  }

  /** How many tokens can no longer change, because enough of another follows them. */
  #finalCount(tokens, last) {
    let length = 0;
    for (let index = last; index > 0; index -= 1) {
      length += tokens[index].raw.length;
      if (tokens[index].type !== 'space' && (length > SETTLED || tokens[index].raw.includes('\n'))) return index;
    }
    return tokens[0]?.raw.length > MAX_BLOCK ? 1 : 0;
  }

  /** Inside an open fence: text is appended as it comes, until a line closes it. */
  #feedFence(text, done) {
    const { block, mark } = this.fence;
    const close = new RegExp(`^ {0,3}\\${mark[0]}{${mark.length},}[ \\t]*$`);
    let { at, line } = this.fence; // shown up to `at`; the line it is in began at `line`
    let code = '';
    while (line < text.length) {
      const newline = text.indexOf('\n', line);
      const end = newline < 0 ? text.length : newline;
      const words = text.slice(line, end);
      const whole = newline >= 0 || done;
      if (whole && close.test(words)) {
        block.append(code);
        block.finish();
        this.committed = Math.min(text.length, end + 1);
        this.fence = null;
        return true;
      }
      // Half a line that may become the closing fence waits for its other half.
      if (!whole && /^ {0,3}(`+|~+)$/.test(words)) break;
      const next = Math.min(text.length, end + 1);
      code += text.slice(Math.max(at, line), next);
      at = next;
      if (newline < 0) break;
      line = next;
    }
    block.append(code);
    Object.assign(this.fence, { at, line });
    if (done) {
      block.finish();
      this.committed = text.length;
      this.fence = null;
    }
    return false;
  }

  #render(tokens, links) {
    if (tokens.some((token) => token.raw.length > MAX_BLOCK && token.type !== 'code' && token.type !== 'table')) {
      const fragment = document.createDocumentFragment();
      fragment.append(...tokens.map((token) => h('p.plain', { textContent: token.raw })));
      return fragment;
    }
    tokens.links = links;
    return renderTokens(tokens);
  }

  #clearTail() {
    for (const node of this.tail) node.remove();
    this.tail = [];
  }
}

/**
 * Hides what half-written Markdown would show for a moment and then take back:
 * an emphasis or a link that is not closed yet, the first line of a table, the
 * dashes that would turn a paragraph into a heading.
 */
export function heal(text) {
  const start = text.lastIndexOf('\n\n') + 1; // marks of one block do not reach into the next
  const line = text.slice(text.lastIndexOf('\n') + 1);
  const lines = text.slice(start).replace(/^\n/, '').split('\n');
  const inTable = lines.length > 2 && /^\s*\|/.test(lines[0]);
  // A table's header is no table before its second line is over.
  if (!inTable && /^\s*\|/.test(lines[0])) return text.slice(0, text.length - lines.join('\n').length);
  // Nothing but the marker of a block to come.
  if (/^\s*([-=*_+]+|\d+[.)]?|#{1,6}|>|`{1,3}|~{1,3})\s*$/.test(line)) return text.slice(0, text.length - line.length);

  let block = text.slice(start);
  if (/(^|\n) {0,3}(```|~~~)/.test(block)) return text;
  let closing = '';
  const code = /(`+)([^`]*)$/.exec(block.replace(/(`+)[^`]+\1(?!`)/g, (whole) => ' '.repeat(whole.length)));
  if (code) {
    if (code[2]) closing = code[1];
    else block = block.slice(0, -code[1].length);
  } else {
    // A link that is not over shows its words only; arr[0] is no link.
    const link = /(^|\s)!?\[([^\]\n]*)(\]\([^)\n]*|\])?$/.exec(block);
    if (link) block = block.slice(0, link.index) + link[1] + (/^[ x]?$/i.test(link[2]) ? '' : link[2]);
    block = block.replace(/[*_~]+$/, '');
  }
  let bare = block.replace(/`[^`]*`?/g, (span) => ' '.repeat(span.length)).replace(/\\./g, '  ');
  for (const mark of ['~~', '**', '__', '*', '_']) {
    const opener = bare.lastIndexOf(mark);
    const opens = opener >= 0 && /^$|[\s("'[*_]/.test(bare.charAt(opener - 1)) && /[^\s*_~]/.test(bare.charAt(opener + mark.length));
    if (opens) {
      if (mark.length === 2) closing = closing.startsWith('`') ? closing + mark : mark + closing;
      else closing = closing.replace(/^`*/, (ticks) => ticks + mark);
    }
    bare = bare.replaceAll(mark, ' '.repeat(mark.length));
  }
  if (block.length + start === text.length && !closing) return text;
  return text.slice(0, start) + (closing ? block.trimEnd() + closing : block);
}
