/** dom.js: building elements without markup strings. */

const PROPERTIES = new Set(['value', 'checked', 'disabled', 'hidden', 'textContent', 'open', 'indeterminate', 'htmlFor', 'tabIndex']);

/**
 * h('button.primary', {onclick, 'aria-label': 'Send'}, icon('send'), 'Send')
 * Children are nodes, strings, or null. Strings become text nodes, never markup.
 */
export function h(spec, props, ...children) {
  const [tag, ...classes] = spec.split('.');
  const node = document.createElement(tag || 'div');
  if (classes.length) node.className = classes.join(' ');
  if (tag === 'button') node.type = 'button';
  for (const name in props) {
    const value = props[name];
    if (value == null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) node[name] = value;
    else node.setAttribute(name, value === true ? '' : value);
  }
  put(node, children);
  return node;
}

function put(node, children) {
  for (const child of children) {
    if (child == null || child === false) continue;
    if (Array.isArray(child)) put(node, child);
    else node.append(child);
  }
}

/** Sets text only if it differs: unchanged nodes cause no layout and no speech. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttr(node, name, value) {
  if (value == null || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value === true ? '' : value);
}

/** Ids for aria-controls and the like. */
let ids = 0;
export function uid(prefix = 'u') {
  ids += 1;
  return `${prefix}-${ids}`;
}

/** A function that runs at most once a frame, however often it is called. */
export function oncePerFrame(fn) {
  let asked = 0;
  return () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      fn();
    });
  };
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No clipboard API on an insecure origin (a LAN address): the old way still works.
    const area = h('textarea.offscreen', { value: text, 'aria-hidden': 'true' });
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}
