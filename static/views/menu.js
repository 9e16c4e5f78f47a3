/** menu.js: a button that opens a list to choose from (WAI-ARIA menu button). */
import { h, setAttr, uid } from './dom.js';
import { icon } from './icons.js';

/**
 * `build()` is called at each opening and returns entries:
 *   {label, detail?, icon?, checked?, danger?, onselect} | {heading} | 'line'
 */
export function menuButton(button, build, { align = 'start', label } = {}) {
  const id = uid('menu');
  setAttr(button, 'aria-haspopup', 'menu');
  setAttr(button, 'aria-expanded', 'false');
  setAttr(button, 'aria-controls', id);
  let menu = null;

  const close = (refocus) => {
    if (!menu) return;
    const old = menu;
    menu = null;
    setAttr(button, 'aria-expanded', 'false');
    old.remove();
    if (refocus) button.focus();
  };
  const open = () => {
    menu = h('div.menu', { id, role: 'menu', popover: 'auto', 'aria-label': label ?? button.getAttribute('aria-label') ?? button.textContent });
    for (const entry of build()) menu.append(entryView(entry, close));
    menu.addEventListener('toggle', (event) => event.newState === 'closed' && close(menu?.contains(document.activeElement)));
    menu.addEventListener('keydown', (event) => keys(event, menu, () => close(true)));
    // Beside the button in the DOM, so that Tab goes on from there.
    button.after(menu);
    menu.showPopover();
    place(menu, button, align);
    setAttr(button, 'aria-expanded', 'true');
    (menu.querySelector('[aria-checked="true"]') ?? menu.querySelector('[role^="menuitem"]'))?.focus();
  };
  // The light dismissal of a popover comes before the click that toggles it.
  let wasOpen = false;
  button.addEventListener('pointerdown', () => (wasOpen = Boolean(menu)));
  button.addEventListener('click', () => {
    if (menu || wasOpen) close(true);
    else open();
    wasOpen = false;
  });
  button.addEventListener('keydown', (event) => {
    if (event.key !== 'ArrowDown' && event.key !== 'ArrowUp') return;
    event.preventDefault();
    if (!menu) open();
  });
  return { open, close };
}

function entryView(entry, close) {
  if (entry === 'line') return h('hr', { role: 'separator' });
  if (entry.heading) return h('p.menu-heading', { textContent: entry.heading, role: 'presentation' });
  const choice = entry.checked !== undefined;
  return h(
    `button.menu-item${entry.danger ? '.danger' : ''}`,
    {
      role: choice ? 'menuitemradio' : 'menuitem',
      'aria-checked': choice ? String(entry.checked) : null,
      tabIndex: -1,
      disabled: entry.disabled,
      onclick: () => {
        close(true);
        entry.onselect();
      },
    },
    entry.icon ? icon(entry.icon) : null,
    h('span.menu-words', {}, h('span', { textContent: entry.label }), entry.detail ? h('small', { textContent: entry.detail }) : null),
    choice ? h('span.menu-check', {}, entry.checked ? icon('check') : null) : null,
    entry.keys ? h('kbd', { textContent: entry.keys }) : null,
  );
}

function keys(event, menu, close) {
  const items = [...menu.querySelectorAll('[role^="menuitem"]:not(:disabled)')];
  const at = items.indexOf(document.activeElement);
  const go = (index) => {
    items[(index + items.length) % items.length]?.focus();
    event.preventDefault();
  };
  if (event.key === 'ArrowDown') go(at + 1);
  else if (event.key === 'ArrowUp') go(at - 1);
  else if (event.key === 'Home') go(0);
  else if (event.key === 'End') go(items.length - 1);
  else if (event.key === 'Escape') {
    event.preventDefault();
    event.stopPropagation(); // it closes the menu, it does not stop the agent
    close();
  } else if (event.key === 'Tab') close();
  else if (event.key.length === 1 && /\S/.test(event.key)) {
    const letter = event.key.toLowerCase();
    const next = [...items.slice(at + 1), ...items].find((item) => item.textContent.trim().toLowerCase().startsWith(letter));
    next?.focus();
  }
}

/** Under or over the button, wherever there is room, and never off the screen. */
function place(menu, button, align) {
  const at = button.getBoundingClientRect();
  const width = menu.offsetWidth;
  const height = menu.offsetHeight;
  const edge = 8;
  const left = align === 'end' ? at.right - width : at.left;
  const below = window.innerHeight - at.bottom;
  const top = below > height + edge || below > at.top ? at.bottom + 4 : at.top - height - 4;
  menu.style.left = `${Math.max(edge, Math.min(left, window.innerWidth - width - edge))}px`;
  menu.style.top = `${Math.max(edge, Math.min(top, window.innerHeight - height - edge))}px`;
}
