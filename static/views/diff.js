/** diff.js: what changed between two texts, by lines, and how to show it. */
import { h } from './dom.js';
import { icon } from './icons.js';
import { plural } from './format.js';

const CONTEXT = 3;
const MAX_EDITS = 300; // beyond this many differences the search takes too long
const MAX_ROWS = 400; //   shown at once

/** [{sign: ' ' | '+' | '-', text, oldLine, newLine}] */
export function diffLines(oldText, newText) {
  const a = split(oldText);
  const b = split(newText);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let endA = a.length;
  let endB = b.length;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) {
    endA -= 1;
    endB -= 1;
  }
  const rows = [];
  let oldLine = 1;
  let newLine = 1;
  const push = (sign, text) => {
    rows.push({ sign, text, oldLine: sign === '+' ? null : oldLine, newLine: sign === '-' ? null : newLine });
    if (sign !== '+') oldLine += 1;
    if (sign !== '-') newLine += 1;
  };
  for (let i = 0; i < start; i += 1) push(' ', a[i]);
  for (const [sign, text] of middle(a.slice(start, endA), b.slice(start, endB))) push(sign, text);
  for (let i = endA; i < a.length; i += 1) push(' ', a[i]);
  return rows;
}

function split(text) {
  if (!text) return [];
  return text.replace(/\r\n?/g, '\n').replace(/\n$/, '').split('\n');
}

/** Myers' greedy search; gives up and replaces all when the texts have little in common. */
function middle(a, b) {
  const replaced = () => [...a.map((text) => ['-', text]), ...b.map((text) => ['+', text])];
  if (!a.length || !b.length) return replaced();
  const reach = new Map([[1, 0]]); // diagonal -> how far along a
  const trace = [];
  for (let d = 0; d <= a.length + b.length; d += 1) {
    if (d > MAX_EDITS) break;
    trace.push(new Map(reach));
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && reach.get(k - 1) < reach.get(k + 1));
      let x = down ? reach.get(k + 1) : reach.get(k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      reach.set(k, x);
      if (x >= a.length && x - k >= b.length) return walkBack(a, b, trace, d);
    }
  }
  return replaced();
}

function walkBack(a, b, trace, edits) {
  const steps = [];
  let x = a.length;
  let y = b.length;
  for (let d = edits; d >= 0; d -= 1) {
    const reach = trace[d];
    const k = x - y;
    const down = k === -d || (k !== d && reach.get(k - 1) < reach.get(k + 1));
    const fromX = d === 0 ? 0 : reach.get(down ? k + 1 : k - 1);
    const fromY = d === 0 ? 0 : fromX - (down ? k + 1 : k - 1);
    const startX = d === 0 ? 0 : down ? fromX : fromX + 1;
    while (x > startX && y > (d === 0 ? 0 : down ? fromY + 1 : fromY)) {
      x -= 1;
      y -= 1;
      steps.push([' ', a[x]]);
    }
    if (d === 0) break;
    steps.push(down ? ['+', b[fromY]] : ['-', a[fromX]]);
    x = fromX;
    y = fromY;
  }
  return steps.reverse();
}

export function diffStat(rows) {
  let added = 0;
  let removed = 0;
  for (const { sign } of rows) {
    if (sign === '+') added += 1;
    if (sign === '-') removed += 1;
  }
  return { added, removed };
}

/** The figure: hunks with three lines of context, long ones cut with a way to see the rest. */
export function diffView({ path, oldText, newText }, rows = diffLines(oldText, newText)) {
  const { added, removed } = diffStat(rows);
  const body = h('div.diff-body', { tabIndex: 0, role: 'region', 'aria-label': `Changes to ${path}` });
  const hunks = visible(rows);
  const draw = (limit) => {
    body.replaceChildren(h('div.diff-rows', {}, hunks.slice(0, limit).map(rowView)));
    if (hunks.length > limit) {
      body.append(h('button.quiet.more-rows', { onclick: () => draw(Infinity) }, icon('fold'), `Show ${plural(hunks.length - limit, 'more line')}`));
    }
  };
  draw(MAX_ROWS);
  return h(
    'figure.code.diff',
    {},
    h('figcaption', {}, h('span.path', { textContent: path, title: path }), statView({ added, removed }, oldText == null)),
    body,
  );
}

export function statView({ added, removed }, isNew = false) {
  return h(
    'span.stat',
    { 'aria-label': `${plural(added, 'line')} added, ${removed} removed`, role: 'img' },
    isNew ? h('span.new', { textContent: 'new' }) : null,
    h('span.plus', { textContent: `+${added}` }),
    removed ? h('span.minus', { textContent: `−${removed}` }) : null,
  );
}

function visible(rows) {
  const keep = new Uint8Array(rows.length);
  rows.forEach(({ sign }, index) => {
    if (sign !== ' ') keep.fill(1, Math.max(0, index - CONTEXT), index + CONTEXT + 1);
  });
  const shown = [];
  for (let index = 0; index < rows.length; index += 1) {
    if (keep[index]) {
      shown.push(rows[index]);
      continue;
    }
    let end = index;
    while (end < rows.length && !keep[end]) end += 1;
    if (end - index <= 2) shown.push(...rows.slice(index, end));
    else shown.push({ sign: '@', text: plural(end - index, 'unchanged line') });
    index = end - 1;
  }
  return shown;
}

const SIGN = { '+': 'add', '-': 'del', ' ': 'same', '@': 'skip' };

function rowView({ sign, text, oldLine, newLine }) {
  if (sign === '@') return h('div.row.skip', {}, h('span.text', { textContent: text }));
  return h(
    `div.row.${SIGN[sign]}`,
    {},
    h('span.no', { 'aria-hidden': 'true', 'data-no': newLine ?? oldLine }),
    h('span.sign', { textContent: sign === '-' ? '−' : sign }),
    h('span.text', { textContent: text || ' ' }),
  );
}
