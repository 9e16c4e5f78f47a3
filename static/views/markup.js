/**
 * What GitHub's Markdown, and the mathematics that models write, add to marked: formulas, footnotes,
 * folded details, alerts, safe HTML, and paths whose backslashes stay. Strings only, no DOM.
 */
import { Marked } from 'marked';

export const TAGS = new Set('b i u s q p div br hr sub sup kbd ins del strong em mark small samp var abbr cite dfn code pre blockquote ul ol li dl dt dd table thead tbody tfoot tr th td h3 h4 h5 h6 details summary'.split(' '));
const MAX_DEPTH = 12; // of details in each other
const MAX_FORMULA = 4000; // characters
export const MAX_BLOCK = 24_576; // characters; a longer block is shown as plain text

export const escape = (text) => text.replace(/[&<>"']/g, (char) => `&#${char.charCodeAt(0)};`);

/** Raw HTML with the tags of TAGS, bare; comments vanish; any other tag is shown as the text it is. */
export function safeHtml(text) {
	return text.replace(/<!--[\s\S]*?(?:-->|$)|<(\/?)([a-z][a-z\d]*)((?:[^<>"']|"[^"]*"|'[^']*')*)>|[<>]/gi, (found, end, name, attributes = '') => {
		const tag = name?.toLowerCase().replace(/^h([1-6])$/, (_, depth) => headingTag(Number(depth)));
		if (found.startsWith('<!--')) return '';
		if (!TAGS.has(tag)) return escape(found);
		const align = !end && /\salign\s*=\s*["']?(left|right|center)\b/i.exec(attributes)?.[1];
		const open = !end && tag === 'details' && /\sopen\b/i.test(attributes);
		return `<${end}${tag}${align ? ` align="${align}"` : ''}${open ? ' open' : ''}>`;
	});
}

/** The page itself has h1 and h2. */
export const headingTag = (depth) => `h${Math.min(6, depth + 2)}`;

/** Prices, shell variables and prose between dollar signs are none. */
export function isFormula(text) {
	if (text.length > MAX_FORMULA || /`|\n\s*\n/.test(text) || !text.trim()) return false;
	if (/^\d/.test(text) && /\s/.test(text) && !/[\\^_={}]/.test(text)) return false;
	return /[\\^_=+<>{}]/.test(text) || !/\p{L}{2,}[\s,;.]+\p{L}{2,}/u.test(text);
}

const formula = (raw, text, display) => ({ type: 'formula', raw, text: text.trim(), display });
const indexOf = (pattern) => (src) => {
	const found = pattern.exec(src);
	return found ? found.index : undefined;
};

/** `code` whose title tells what it is; render() puts the drawn formula in its place. */
const formulaHtml = ({ text, display }) => `<code title="${display ? 'formula display' : 'formula'}">${escape(text)}</code>`;

const BLOCK = /^ {0,3}(?:\$\$(?!\$)((?:(?!\$\$|\n[ \t]*\n)[\s\S])+)\$\$|\\\[((?:(?!\\\]|\n[ \t]*\n)[\s\S])+)\\\]|(\\begin\{((?:equation|align|gather|alignat|multline|CD)\*?)\}(?:(?!\n[ \t]*\n)[\s\S])+?\\end\{\4\}))[ \t]*(?:\n|$)/;
const INLINE = /^(?:\$\$(?!\$)([^$\n](?:(?!\$\$|\n[ \t]*\n)[\s\S])*)\$\$|\\\[((?:(?!\\\]|\n[ \t]*\n)[\s\S])+)\\\](?!\()|\\\(((?:(?!\\\)|\n[ \t]*\n)[\s\S])+)\\\)|\$`([^`\n]+)`\$|\$(?![\s$])((?:\\.|(?!\n[ \t]*\n)[^$\\`])+?)(?<!\s)\$(?![\w$]))/;

const blockFormula = {
	name: 'formulaBlock',
	level: 'block',
	start: indexOf(/(?<=\n) {0,3}(?:\$\$|\\\[|\\begin\{)/),
	tokenizer(src) {
		const [raw, dollars, brackets, environment] = BLOCK.exec(src) ?? [];
		const text = dollars ?? brackets ?? environment;
		if (text && text.length <= MAX_FORMULA && (!brackets || isBracketFormula(brackets))) return { ...formula(raw, text, true), type: 'formulaBlock' };
	},
	renderer: (token) => `<p>${formulaHtml(token)}</p>\n`,
};

const inlineFormula = {
	name: 'formula',
	level: 'inline',
	start: indexOf(/\$|\\[([]/),
	tokenizer(src, tokens) {
		const [raw, display, brackets, parentheses, ticks, dollars] = INLINE.exec(src) ?? [];
		if (!raw) return;
		const before = tokens.at(-1)?.raw.at(-1) ?? '';
		if (brackets !== undefined) return isBracketFormula(brackets) ? formula(raw, brackets, true) : undefined;
		if (raw.startsWith('$') && /[\w$\\]/.test(before)) return;
		const text = display ?? parentheses ?? ticks ?? dollars;
		if (isFormula(text)) return formula(raw, text, display !== undefined);
	},
	renderer: formulaHtml,
};

/** Escaped brackets are prose, more often than not: \[1\], \[a link\]. */
const isBracketFormula = (text) => isFormula(text) && /[\\^_=+<>{}]|^\s*[a-z]\s*$/i.test(text);

/** C:\Users\_me and \\server\share: no punctuation is escaped in them. */
const path = {
	name: 'path',
	level: 'inline',
	start: indexOf(/\b[A-Za-z]:\\|\\\\[\w.]/),
	tokenizer(src, tokens) {
		const found = /^(?:[A-Za-z]:|\\\\[\w.-]+)\\[^\s<>"|?*`]*/.exec(src);
		if (!found || /[\w\\]/.test(tokens.at(-1)?.raw.at(-1) ?? '')) return;
		const raw = found[0].replace(/[).,;:!\]]+$/, '');
		return { type: 'path', raw, text: raw };
	},
	renderer: ({ text }) => escape(text),
};

const footnoteMark = {
	name: 'footnoteMark',
	level: 'inline',
	start: indexOf(/\[\^/),
	tokenizer(src) {
		const found = /^\[\^(\d{1,4}|[A-Za-z]{3,}\w{0,20})\](?!\()/.exec(src);
		if (found) return { type: 'footnoteMark', raw: found[0], text: found[1] };
	},
	renderer: ({ text }) => `<sup>${escape(text)}</sup>`,
};

const footnote = {
	name: 'footnote',
	level: 'block',
	start: indexOf(/(?<=\n)\[\^[^\]\s]+\]:/),
	tokenizer(src) {
		const found = /^\[\^([^\]\s]{1,40})\]:[ \t]*([^\n]*(?:\n(?:[ \t]{2,}[^\n]+|(?!\[\^|[ \t]*\n|[-*+>#`]|\d+[.)])[^\n]+))*)(?:\n|$)/.exec(src);
		if (found) return { type: 'footnote', raw: found[0], text: found[1], tokens: this.lexer.inline(found[2].replace(/\n[ \t]*/g, '\n')) };
	},
	renderer(token) {
		return `<p><sup>${escape(token.text)}</sup> ${this.parser.parseInline(token.tokens)}</p>\n`;
	},
};

/** <details> up to its end; until that has come, all that follows. */
const details = {
	name: 'details',
	level: 'block',
	start: indexOf(/(?<=\n) {0,3}<details\b/i),
	tokenizer(src) {
		const opening = /^ {0,3}<details(\s[^<>]*)?>/i.exec(src);
		const depth = this.lexer.folded ?? 0;
		if (!opening || depth >= MAX_DEPTH) return;
		let open = 0;
		let [end, next] = [src.length, src.length];
		for (const { 0: tag, index } of src.matchAll(/<(\/?)details\b[^<>]*>/gi)) {
			open += tag[1] === '/' ? -1 : 1;
			if (open > 0) continue;
			[end, next] = [index, index + tag.length];
			break;
		}
		let body = src.slice(opening[0].length, end);
		const summary = /^\s*<summary(?:\s[^<>]*)?>([\s\S]*?)(?:<\/summary>|$)/i.exec(body);
		if (summary) body = body.slice(summary[0].length);
		const rest = /^[ \t]*\n*/.exec(src.slice(next))[0];
		this.lexer.folded = depth + 1;
		const token = { type: 'details', raw: src.slice(0, next) + rest, open: /\sopen\b/i.test(opening[1] ?? ''), summary: this.lexer.inline(summary?.[1].trim() || 'Details'), tokens: this.lexer.blockTokens(body.replace(/^\n+/, ''), []) };
		this.lexer.folded = depth;
		return token;
	},
	renderer({ open, summary, tokens }) {
		return `<details${open ? ' open' : ''}><summary>${this.parser.parseInline(summary)}</summary>${this.parser.parse(tokens.map(bounded))}</details>\n`;
	},
};

const bounded = (token) => (isTooLong(token) ? { type: 'paragraph', tokens: [{ type: 'text', text: token.raw }] } : token);

/** Code is only escaped, and what is in details is bounded by itself. */
export const isTooLong = ({ raw, type }) => raw.length > MAX_BLOCK && type !== 'code' && type !== 'details';

export const options = new Marked({ extensions: [blockFormula, inlineFormula, path, footnoteMark, footnote, details] }).defaults;
