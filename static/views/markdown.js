/**
 * Markdown that grows. What later text can no longer change is
 * rendered once and stays; only the open block at the end is rendered again, and
 * an open code fence only gets text appended.
 *
 * The text is hostile. Of raw HTML only harmless tags are kept, without attributes, and all that
 * marked makes of the text goes through DOMPurify with a short list of tags.
 */
import DOMPurify from 'dompurify';
import { Lexer, Parser, Renderer } from 'marked';
import { CODE, PROSE, spell } from '../marks.js';
import { codeBlock } from './code.js';
import { safeImage } from './content.js';
import { diagramView } from './diagram.js';
import { h, icon, nodesOf } from './dom.js';
import { heal } from './heal.js';
import { escape, headingTag, isTooLong, options, safeHtml, TAGS } from './markup.js';
import { formulaView } from './mathematics.js';

const STEP = 16_384;
const MAX_INLINE = 4096; // longer running text is shown as plain text: some of it takes quadratic time
const MAX_DETAILS = 200_000; // so much of open details is lexed again while they grow
const SETTLED = 12; // characters of a next block that make the one before final

const ALLOWED = {
	ALLOWED_TAGS: [...TAGS, 'a', 'span', 'img'],
	ALLOWED_ATTR: ['href', 'src', 'alt', 'title', 'align', 'start', 'open'],
	ALLOW_DATA_ATTR: false,
	ALLOW_ARIA_ATTR: false,
	RETURN_DOM_FRAGMENT: true,
};

const ALERTS = { note: 'info', tip: 'spark', important: 'alert', warning: 'alert', caution: 'shield' };
const RTL = /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}\p{Script=Adlam}]/u;

/** Fences that are drawn once they are complete. */
const DRAWN = { mermaid: diagramView, math: (text) => h('p', {}, formulaView(text.trim(), true)) };

function fence(text, language) {
	return Object.hasOwn(DRAWN, language) ? DRAWN[language](text) : codeBlock(text, language).el;
}

function anchor(href, inner) {
	const url = URL.canParse(href) ? new URL(href) : {};
	// Not into this very page: such a link could carry a token.
	const here = url.host?.replace(/\.(?=:|$)/, '') === location.host || /[#&]token=/.test(url.hash);
	const safe = url.protocol === 'mailto:' || (/^https?:$/.test(url.protocol) && !here);
	return safe ? `<a href="${escape(url.href)}">${inner}</a>` : `<span>${inner}</span>`;
}

const renderer = Object.assign(new Renderer(), {
	html: ({ text }) => safeHtml(text),
	// In raw <kbd> and <code> marked leaves text as it is.
	text({ tokens, text, escaped }) {
		return tokens ? this.parser.parseInline(tokens) : escaped ? text.replace(/[<>]/g, escape) : escape(text).replace(/&#38;(?=#\d{1,7};|#x[\da-f]{1,6};|\w+;)/gi, '&');
	},
	checkbox: ({ checked }) => (checked ? '☑ ' : '☐ '),
	code: ({ text, lang }) => `<pre title="${escape(lang?.split(/\s/)[0] ?? '')}">${escape(text)}</pre>`,
	// An image is never fetched from elsewhere: it is offered as a link.
	image({ href, text }) {
		const src = safeImage(href);
		return src ? `<img src="${escape(src)}" alt="${escape(spell(text))}">` : anchor(href, escape(text || 'image'));
	},
	link({ href, tokens }) {
		return anchor(href, this.parser.parseInline(tokens));
	},
	heading({ tokens, depth }) {
		const tag = headingTag(depth);
		return `<${tag}>${this.parser.parseInline(tokens)}</${tag}>`;
	},
});

/** Like marked's lex(), but bounded: what is nested too deep throws. */
function lex(text, links) {
	const lexer = new Lexer(options);
	Object.assign(lexer.tokens.links, links);
	lexer.blockTokens(text, lexer.tokens);
	for (const { src, tokens } of lexer.inlineQueue) {
		if (src.length > MAX_INLINE) tokens.push({ type: 'text', raw: src, text: src });
		else lexer.inlineTokens(src, tokens);
	}
	return lexer.tokens;
}

function render(tokens) {
	if (tokens.some((token) => token.type === 'plain' || isTooLong(token))) return tokens.map(({ raw }) => h('p.plain', { prose: raw, dir: 'auto' }));
	const fragment = DOMPurify.sanitize(Parser.parse(tokens, { ...options, renderer }), ALLOWED);
	showHidden(fragment);
	if (RTL.test(fragment.textContent)) for (const node of fragment.querySelectorAll(BLOCKS)) setDirection(node);
	for (const node of fragment.querySelectorAll('pre, code[title^="formula"], table, a, li, blockquote')) {
		if (node.matches('pre')) node.replaceWith(fence(node.textContent, node.title));
		else if (node.matches('code')) node.replaceWith(formulaView(node.textContent, node.title !== 'formula'));
		else if (node.matches('blockquote')) alert(node);
		else if (node.matches('a')) tellTarget(node);
		else if (node.matches('li')) node.classList.toggle('task', /^[☑☐]/.test(node.textContent));
		else {
			const box = h('div.table', { tabIndex: 0, role: 'group', label: 'Table' });
			node.replaceWith(box);
			box.append(node);
		}
	}
	return [...fragment.childNodes];
}

/** Characters that hide are shown by their numbers; in code and links all of them. */
function showHidden(fragment) {
	if (!CODE.any.test(fragment.textContent)) return;
	const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
	const texts = [];
	while (walker.nextNode()) texts.push(walker.currentNode);
	for (const text of texts) {
		const parent = text.parentElement;
		if (!parent?.closest('pre, code[title^="formula"]')) text.replaceWith(...nodesOf(text.data, parent?.closest('code, a') ? CODE : PROSE));
	}
}

const ADDRESS = /(?:\w+:\/\/|www\.)\S+|(?:[\p{L}\p{N}-]+\.)+\p{L}{2,}(?:[/?#:]\S*)?/gu;
const MAX_TARGET = 60;

/** A link opens elsewhere. If its text reads like another address, the real one stands behind it. */
function tellTarget(link) {
	const url = new URL(link.href);
	const same = ({ host, pathname, search }) => host.replace(/^www\./, '') + (pathname + search).replace(/\/$/, '');
	const leadsThere = (said) => {
		const full = /^\w+:\/\//.test(said) ? said : `https://${said}`;
		return URL.canParse(full) && same(new URL(full)) === same(url);
	};
	const mail = url.protocol === 'mailto:';
	const said = mail ? [link.textContent.replace(url.pathname, '')] : [link.textContent];
	const others = said.flatMap((text) => text.match(ADDRESS) ?? []).filter((address) => mail || !leadsThere(address));
	Object.assign(link, { target: '_blank', rel: 'noopener noreferrer', title: url.href });
	if (!others.length && !url.host.includes('xn--') && !url.username) return;
	const path = mail ? url.pathname : url.pathname + url.search;
	const shown = path.length > MAX_TARGET ? `${path.slice(0, MAX_TARGET)}…` : path === '/' ? '' : path;
	link.after(h('span.leads', { text: ` → ${mail ? 'mailto:' : url.host}${shown}` }));
}

const BLOCKS = 'p, h3, h4, h5, h6, th, td, summary, dt, dd, div, li, ul, ol, blockquote, table';

/**
 * Each block has the direction of its first letter. `dir="auto"` does not look into blocks that have
 * a direction of their own: what contains such gets it told.
 */
function setDirection(node) {
	const contains = node.matches('ul, ol, blockquote, table, div') || node.querySelector(BLOCKS);
	node.dir = contains && RTL.test(/\p{L}/u.exec(node.textContent)?.[0] ?? '') ? 'rtl' : 'auto';
}

/** `> [!NOTE]`, as on GitHub. */
function alert(quote) {
	const first = quote.querySelector(':scope > p')?.firstChild;
	const [mark, kind] = /^\[!(note|tip|important|warning|caution)\][ \t]*(?:\n|$)/i.exec(first?.nodeType === Node.TEXT_NODE ? first.data : '') ?? [];
	if (!mark) return;
	const name = kind.toLowerCase();
	first.data = first.data.slice(mark.length);
	if (first.nextSibling?.nodeName === 'BR') first.nextSibling.remove();
	if (!quote.querySelector(':scope > p').textContent) quote.querySelector(':scope > p').remove();
	quote.dataset.alert = name;
	quote.prepend(h('p.alert-title', {}, icon(ALERTS[name]), name[0].toUpperCase() + name.slice(1)));
}

export class MarkdownView {
	constructor(text) {
		this.el = h('div.md');
		this.final = 0; // what is before this offset is rendered for good
		this.tail = [];
		this.fence = null; // {block, length} of the open code fence, if that is where we are
		this.links = {};
		this.nextAt = 0;
		if (text) this.update(text, true);
	}

	/** Shows `text`, which begins with what was shown before. False: call again later. */
	update(text, done) {
		const begun = performance.now();
		// What a reader has selected stays until the turn is over.
		if (!done && (begun < this.nextAt || this.#isSelected())) return false;
		const clean = text.replace(/\r\n?/g, '\n');
		for (let end = 0; end < clean.length; ) {
			end = Math.min(clean.length, Math.max(end, this.final + (this.fence?.length ?? 0)) + STEP);
			const last = done && end === clean.length;
			this.#feed(clean.slice(this.final, end), last);
		}
		const cost = performance.now() - begun;
		this.nextAt = cost > 4 ? begun + cost * 7 : 0;
		return true;
	}

	#isSelected() {
		const selection = getSelection();
		return !selection.isCollapsed && this.tail.some((node) => selection.containsNode(node, true));
	}

	#feed(text, done) {
		const rest = this.fence ? this.#feedFence(text, done) : text;
		if (!rest) return;
		let tokens = [{ type: 'plain', raw: rest }];
		try {
			tokens = lex(done ? rest : heal(rest), this.links);
			this.links = tokens.links;
		} catch {
		}
		const last = tokens.findLastIndex(({ type }) => type !== 'space');
		const count = done ? tokens.length : finalCount(tokens, last);
		for (const node of this.tail) node.remove();
		this.#show(tokens.slice(0, count));
		for (const { raw } of tokens.slice(0, count)) this.final += raw.length;
		this.tail = [];
		if (count > last) return;
		const open = tokens[count];
		if (count === last && open.type === 'code' && /^ {0,3}(```|~~~).*\n/.test(open.raw)) {
			const language = open.lang?.split(/\s/)[0];
			this.fence = { block: codeBlock('', language, true), language, length: 0 };
			this.el.append(this.fence.block.el);
			this.#feedFence(open.raw);
		} else {
			this.tail = this.#show(tokens.slice(count));
		}
	}

	/** An open fence only gets what has come to it; returns what is left behind its end. */
	#feedFence(rest, done) {
		const { fence } = this;
		// Half a line that may become the closing fence waits for its other half.
		const whole = done ? rest : rest.replace(/\n {0,3}[`~]*$/, '');
		const { text, raw } = new Lexer(options).tokenizer.fences(whole);
		const code = text.replace(/\n+$/, '');
		fence.block.append(code.slice(fence.length));
		fence.length = code.length;
		if (raw.length === whole.length && !done) return '';
		if (Object.hasOwn(DRAWN, fence.language ?? '')) fence.block.el.replaceWith(DRAWN[fence.language](code));
		else fence.block.finish();
		this.fence = null;
		this.final += raw.length;
		return rest.slice(raw.length);
	}

	#show(tokens) {
		const nodes = tokens.length ? render(tokens) : [];
		this.el.append(...nodes);
		return nodes;
	}
}

/** How many tokens can no longer change, because enough of others follows them. */
function finalCount(tokens, last) {
	let length = 0;
	for (let index = last; index > 0; index -= 1) {
		const { raw, type } = tokens[index];
		length += raw.length;
		if (type !== 'space' && (length > SETTLED || raw.includes('\n'))) return index;
	}
	return tokens.length && (isTooLong(tokens[0]) || tokens[0].raw.length > MAX_DETAILS) ? 1 : 0;
}
