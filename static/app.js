/**
 * app.js: the wiring. Signs in, knows which sessions are open and which one is
 * on the screen, and hands each part what it needs. It is the only module that
 * imports its siblings; they do not know each other.
 */
import { Api } from './api.js';
import { Session } from './session.js';
import { storage } from './storage.js';
import { createTranscript, promptParts, reduce, seed, textOf } from './transcript.js';
import { Wire } from './wire.js';
import { Attention } from './views/attention.js';
import { ask, confirm, shortcuts } from './views/dialogs.js';
import { copyText, h } from './views/dom.js';
import { icon, mark } from './views/icons.js';
import { FramesView } from './views/frames.js';
import { SessionView } from './views/sessionview.js';
import { Sidebar } from './views/sidebar.js';
import { signInView } from './views/signin.js';
import { StartView } from './views/start.js';
import { Toasts } from './views/toast.js';

const KEPT_OPEN = 8; //         sessions that stay connected when one looks at another
const LIST_EVERY = 15_000; //   ms between looks at the list
const ATTENTION_EVERY = 250; // ms; not per frame, for a hidden tab has no frames

const root = document.getElementById('app');
const attention = new Attention(() => storage.preferences());
const toasts = new Toasts();
document.body.append(toasts.el);

let api = null;
let shell = null; //           what is on the screen when signed in
const open = new Map(); //     session id -> {session, view, seen}, least recently shown first
let current = null; //         id of the session on the screen; null: the start view
let listed = []; //            the last GET /sessions
let withClosed = false;

// ---- signing in -----------------------------------------------------------------

function fragment() {
  return new URLSearchParams(location.hash.slice(1));
}

/** A sign-in link brings the token in its fragment: taken over, and out of the address bar. */
function takeToken() {
  const given = fragment();
  const token = given.get('token');
  if (!token) return;
  given.delete('token');
  const rest = given.toString();
  history.replaceState(null, '', rest ? `#${rest}` : location.pathname);
  storage.saveToken(token, false);
}

async function begin() {
  applyTheme();
  takeToken();
  const token = storage.token();
  if (!token) return showSignIn();
  await enter(token);
}

function showSignIn(message = '') {
  leave();
  const view = signInView({
    message,
    async onSubmit(token, keep) {
      await new Api(token).sessions(); // throws what is wrong with it
      storage.saveToken(token, keep);
      await enter(token);
    },
  });
  root.replaceChildren(view.el);
  view.focus();
}

/** Lets go of everything that belongs to a signed-in user. */
function leave() {
  for (const { session } of open.values()) session.stop();
  open.clear();
  clearInterval(shell?.poll);
  shell = null;
  api = null;
  current = null;
  listed = [];
  attention.show('idle', '');
}

async function enter(token) {
  api = new Api(token, () => {
    storage.forgetToken();
    if (shell) showSignIn('Your sign-in is not valid any more.');
  });
  try {
    listed = await api.sessions();
  } catch (error) {
    if (error.status === 401) return showSignIn('The server does not know this token.');
    return showUnreachable(error, token);
  }
  buildShell();
  route();
  refreshList();
  api.agents().then(
    (agents) => shell?.start.setAgents(agents),
    () => {}, // then the server chooses the agent
  );
}

function showUnreachable(error, token) {
  const button = h('button.primary', { onclick: () => ((button.disabled = true), enter(token)) }, icon('refresh'), 'Try again');
  root.replaceChildren(h('main.signin-page', {}, h('div.signin.message-card', {}, mark(), h('h1', { textContent: 'No connection' }), h('p', { role: 'alert', textContent: error.message }), button)));
  button.focus();
}

// ---- the shell --------------------------------------------------------------------

function buildShell() {
  const sidebar = new Sidebar({
    open: (id) => go(id),
    create: () => go(null),
    hide: () => setMenu(false),
    rename: (row) => renameSession(row.id, row.title),
    close: (row) => closeSession(row.id, row.title),
    copyLink,
    menu: settingsMenu,
    showClosed: (on) => ((withClosed = on), refreshList()),
  });
  const start = new StartView({
    on: { create: createSession },
    upload: (file, onProgress) => api.upload(file, onProgress),
    preferences: storage.preferences().start ?? {},
    save: (change) => storage.savePreferences({ start: { ...storage.preferences().start, ...change } }),
    openMenu: () => setMenu(true),
  });
  const frames = new FramesView(() => toggleFrames());
  const main = h('main.main', {}, start.el);
  const veil = h('div.menu-veil', { onclick: () => setMenu(false) });
  const skip = h('a.skip', { href: '#', onclick: (event) => (event.preventDefault(), focusMain()) }, 'Skip to the message field');
  const el = h('div.shell', {}, skip, sidebar.el, veil, main, frames.el);
  shell = { el, sidebar, start, frames, main, poll: setInterval(() => document.visibilityState === 'visible' && refreshList(), LIST_EVERY) };
  root.replaceChildren(el);
  drawList();
}

function focusMain() {
  if (current) open.get(current)?.view.focus();
  else shell?.start.focus();
}

/** On a phone the list of sessions is a drawer. */
function setMenu(on) {
  if (!shell) return;
  shell.el.classList.toggle('menu-open', on);
  shell.main.inert = on && matchMedia('(max-width: 760px)').matches;
  if (on) shell.sidebar.el.querySelector('button.new').focus();
  else if (shell.sidebar.el.contains(document.activeElement)) focusMain();
}

function toggleFrames(on = shell.frames.el.hidden) {
  shell.frames.show(on && current ? open.get(current).session : null);
  if (!on) focusMain();
}

// ---- which session is on the screen -----------------------------------------------

function go(id) {
  const hash = id ? `#session=${id}` : location.pathname;
  if (id !== current || !id) history.pushState(null, '', hash);
  route();
}

function route() {
  if (!shell) return;
  const id = fragment().get('session');
  setMenu(false);
  const framesOpen = !shell.frames.el.hidden;
  if (id) show(openSession(id));
  else {
    current = null;
    place(shell.start.el);
    shell.frames.show(null);
    shell.start.focus();
  }
  if (id && framesOpen) shell.frames.show(open.get(id).session);
  drawList();
  attend();
}

function place(el) {
  for (const child of [...shell.main.children]) child.hidden = child !== el;
  if (el.parentNode !== shell.main) shell.main.append(el);
}

function show(entry) {
  const { id } = entry.session;
  current = id;
  open.delete(id); // to the end: most recently shown
  open.set(id, entry);
  place(entry.view.el);
  entry.view.scroll.keep();
  // A phone's keyboard would cover what one came to read.
  if (matchMedia('(hover: hover)').matches) entry.view.focus();
  for (const [other, { session, view }] of open) {
    if (open.size <= KEPT_OPEN) break;
    if (other === id || session.running || session.outbox.size) continue;
    session.stop();
    view.el.remove();
    open.delete(other);
  }
}

function openSession(id, state = listed.find((one) => one.session_id === id)) {
  if (open.has(id)) return open.get(id);
  const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:';
  const session = new Session(id, { api, storage, state, Wire, createTranscript, reduce, seed, promptParts, url: `${scheme}//${location.host}/sessions/${encodeURIComponent(id)}/ws` });
  const view = new SessionView(session, {
    parts: promptParts,
    upload: (file, onProgress) => api.upload(file, onProgress),
    draft: { text: storage.draft(id), save: (text) => storage.saveDraft(id, text) },
    on: {
      menu: () => setMenu(true),
      frames: () => toggleFrames(),
      rename: () => renameSession(id, session.title),
      close: () => closeSession(id, session.title),
      copyLink: () => copyLink(id),
      startNew: () => go(null),
    },
  });
  const entry = { session, view, seen: { running: false, waiting: 0 } };
  open.set(id, entry);
  session.on('change', attendSoon);
  session.on('problem', (text) => toasts.show(text));
  session.start();
  return entry;
}

async function createSession(options, message) {
  const state = await api.create(options);
  const id = state.session_id;
  const { session } = openSession(id, { ...options, ...state });
  session.send(message);
  go(id);
  refreshList();
}

async function renameSession(id, title) {
  const name = await ask({ title: 'Rename the session', label: 'Name', value: title ?? '', action: 'Rename' });
  if (!name) return;
  await attempt(async () => {
    const entry = open.get(id);
    if (entry) await entry.session.rename(name);
    else await api.update(id, { title: name });
    await refreshList();
  });
}

async function closeSession(id, title) {
  const sure = await confirm({ title: 'Close this session?', text: `${title ? `“${title}”: ` : ''}the agent is stopped. The conversation can be read for a while, but not continued.`, action: 'Close session', danger: true });
  if (!sure) return;
  await attempt(async () => {
    await api.close(id);
    await refreshList();
  });
}

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    if (error.status !== 401) toasts.show(error.message);
  }
}

async function copyLink(id) {
  const done = await copyText(`${location.origin}/#session=${id}`);
  toasts.show(done ? 'Link copied.' : 'The link could not be copied.');
}

// ---- the list -------------------------------------------------------------------------

async function refreshList() {
  if (!api) return;
  const asked = api;
  try {
    const sessions = await asked.sessions(withClosed);
    if (api !== asked) return;
    listed = sessions;
    drawList();
  } catch (error) {
    if (shell && error.status !== 401) shell.sidebar.fail('The list could not be read again.');
  }
}

function drawList() {
  if (!shell) return;
  const rows = new Map();
  for (const one of listed) {
    const state = one.closed_at ? 'closed' : one.pending_permissions?.length ? 'waiting' : one.state;
    rows.set(one.session_id, { id: one.session_id, title: one.meta?.title ?? '', agent: one.agent, at: one.last_turn_at ?? one.created_at, state });
  }
  // Of what is open here we know more, and sooner.
  for (const [id, { session }] of open) {
    if (!session.synced) continue;
    const last = session.model.turns[session.model.turns.length - 1];
    const row = rows.get(id) ?? { id, agent: session.agent, at: session.state?.created_at ?? 0 };
    const state = session.closed ? 'closed' : session.waiting ? 'waiting' : session.running ? 'running' : 'idle';
    if (state === 'closed' && !withClosed && id !== current) rows.delete(id);
    else rows.set(id, { ...row, title: session.title, state, at: Math.max(row.at ?? 0, last?.prompt ? last.startedAt / 1000 : 0) });
  }
  shell.sidebar.update([...rows.values()], current);
}

// ---- attention: title, icon, list, notifications, speech ------------------------------

let attended = 0;
let attendTimer = 0;

function attendSoon() {
  const wait = attended + ATTENTION_EVERY - Date.now();
  if (wait <= 0) attend();
  else attendTimer ||= setTimeout(attend, wait);
}

function attend() {
  clearTimeout(attendTimer);
  attendTimer = 0;
  attended = Date.now();
  let state = 'idle';
  for (const entry of open.values()) {
    const { session } = entry;
    if (session.waiting) state = 'waiting';
    else if (session.running && state === 'idle') state = 'running';
    if (session.synced) tellChanges(entry);
  }
  attention.show(state, current ? open.get(current)?.session.title : '');
  drawList();
}

function tellChanges(entry) {
  const { session, seen } = entry;
  const name = session.title || session.agent;
  const waiting = session.model.waiting.size;
  if (waiting > seen.waiting) {
    const [tool] = [...session.model.waiting.values()].slice(-1);
    attention.alert(`${session.agent} asks for your permission: ${tool.title}`);
    attention.notify(`${session.agent} waits for you`, tool.title || name, () => go(session.id));
  }
  if (seen.running && !session.running) {
    const turn = session.model.turns[session.model.turns.length - 1];
    const answer = turn.items.findLast((item) => item.kind === 'message');
    const words = turn.stopReason === 'end_turn' ? textOf(answer?.parts).slice(0, 600) : `The turn ended: ${turn.error?.message ?? turn.stopReason}`;
    attention.say(`${session.agent} has finished. ${words}`);
    attention.notify(`${session.agent} has finished`, name, () => go(session.id));
  } else if (!seen.running && session.running && entry.told) {
    attention.say(`${session.agent} is working.`);
  }
  entry.told = true;
  entry.seen = { running: session.running, waiting };
}

// ---- settings ----------------------------------------------------------------------------

function applyTheme() {
  const { theme } = storage.preferences();
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

function settingsMenu() {
  const { theme = 'system', notify } = storage.preferences();
  const themed = (value, label, name) => ({ label, icon: name, checked: theme === value, onselect: () => (storage.savePreferences({ theme: value }), applyTheme()) });
  const canNotify = typeof Notification !== 'undefined';
  const notifying = canNotify && notify && Notification.permission === 'granted';
  return [
    { heading: 'Appearance' },
    themed('system', 'As the system'),
    themed('light', 'Light'),
    themed('dark', 'Dark'),
    'line',
    { label: notifying ? 'Notifications are on' : 'Notify me when I am away', icon: 'bell', disabled: !canNotify, onselect: toggleNotifications },
    { label: 'Keyboard', icon: 'keyboard', onselect: shortcuts },
    'line',
    { label: 'Sign out', icon: 'leave', onselect: () => (storage.forgetToken(), showSignIn()) },
  ];
}

async function toggleNotifications() {
  if (storage.preferences().notify && Notification.permission === 'granted') {
    storage.savePreferences({ notify: false });
    toasts.show('Notifications are off.');
    return;
  }
  const answer = await Notification.requestPermission();
  storage.savePreferences({ notify: answer === 'granted' });
  toasts.show(answer === 'granted' ? 'You will be told when an agent waits for you or has finished.' : 'The browser does not allow notifications from this page.');
}

// ---- the keyboard, and the world outside ---------------------------------------------------

document.addEventListener('keydown', (event) => {
  if (!shell || document.querySelector('dialog[open]')) return;
  const command = event.ctrlKey || event.metaKey;
  const view = current && open.get(current)?.view;
  if (command && event.key.toLowerCase() === 'k') {
    setMenu(true);
    shell.sidebar.find.focus();
    shell.sidebar.find.select();
  } else if (command && event.shiftKey && event.key.toLowerCase() === 'o') go(null);
  else if (command && event.key === '.') view?.showWaiting();
  else if (event.ctrlKey && event.key === '`') current && toggleFrames();
  else if (event.altKey && (event.key === 'ArrowUp' || event.key === 'ArrowDown') && !event.target.value) neighbour(event.key === 'ArrowUp' ? -1 : 1);
  else if (event.key === 'Escape' && shell.el.classList.contains('menu-open')) setMenu(false);
  else if (event.key === 'Escape' && view?.session.running && !event.defaultPrevented && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) view.session.cancel();
  else return;
  event.preventDefault();
});

function neighbour(step) {
  const links = [...shell.sidebar.list.querySelectorAll('.session-row')].map((row) => row.dataset.id);
  const next = links[(links.indexOf(current) + step + links.length) % links.length];
  if (next) go(next);
}

/** A phone that slept, a network that is back: worth a look at every connection. */
function wakeAll() {
  for (const { session } of open.values()) session.wire.wake();
}
document.addEventListener('visibilitychange', () => {
  if (document.visibilityState !== 'visible') return;
  wakeAll();
  refreshList();
});
window.addEventListener('online', wakeAll);
window.addEventListener('pageshow', (event) => event.persisted && wakeAll());
window.addEventListener('hashchange', () => {
  if (fragment().get('token')) {
    leave();
    begin(); // a sign-in link opened in a tab that was here already
  } else route();
});
window.addEventListener('popstate', () => route());
// A file dropped beside the target must not replace the page.
for (const name of ['dragover', 'drop']) window.addEventListener(name, (event) => event.preventDefault());

begin();
