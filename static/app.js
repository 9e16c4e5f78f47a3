/**
 * app.js: the wiring. Signs in, knows which sessions are open and which one is on
 * the screen, and hands each part what it needs. The only module that imports its
 * siblings; they do not know each other.
 */
import { Api } from './api.js';
import { Session } from './session.js';
import { storage } from './storage.js';
import { createTranscript, promptParts, reduce, seed, textOf } from './transcript.js';
import { Attention } from './views/attention.js';
import { ask, shortcuts, toast } from './views/dialogs.js';
import { copyText, h } from './views/dom.js';
import { FramesView } from './views/frames.js';
import { SessionView } from './views/sessionview.js';
import { Sidebar } from './views/sidebar.js';
import { signInView, unreachableView } from './views/signin.js';
import { StartView } from './views/start.js';
import { Wire } from './wire.js';

const KEPT_OPEN = 8; // sessions that stay connected while one looks at another
const LIST_EVERY = 15_000; // ms between looks at the list
const ATTEND_EVERY = 250; // ms; not once a frame, for a hidden tab has no frames

const root = document.getElementById('app');
const attention = new Attention();
const open = new Map(); // session id -> {session, view, seen}, least recently shown first
let api = null;
let shell = null; // what is on the screen when signed in
let current = null; // id of the session on the screen; null: a new one
let listed = []; // the last GET /sessions
let withClosed = false;

const fragment = () => new URLSearchParams(location.hash.slice(1));
const narrow = matchMedia('(max-width: 760px)');

// ---- signing in -------------------------------------------------------------------

async function begin() {
	const given = fragment();
	if (given.has('token')) {
		// A sign-in link: its token is taken over, and out of the address bar.
		storage.saveToken(given.get('token'), false);
		given.delete('token');
		history.replaceState(null, '', given.size ? `#${given}` : location.pathname);
	}
	applyTheme();
	if (storage.token()) await enter(storage.token());
	else signIn();
}

function signIn(message = '') {
	leave();
	const view = signInView(message, async (token, keep) => {
		await new Api(token).sessions(); // throws what is wrong with it
		storage.saveToken(token, keep);
		await enter(token);
	});
	root.replaceChildren(view.el);
	view.focus();
}

function signOut(message) {
	storage.saveToken(null);
	signIn(message);
}

/** Lets go of everything that belongs to whoever was signed in. */
function leave() {
	for (const { session } of open.values()) session.stop();
	open.clear();
	clearInterval(shell?.poll);
	shell = api = current = null;
	listed = [];
	attention.show('idle');
}

async function enter(token) {
	leave();
	const mine = (api = new Api(token, () => api === mine && signOut('This sign-in is not valid (any more).')));
	try {
		listed = await api.sessions();
	} catch (error) {
		if (error.status === 401) return;
		const view = unreachableView(error.message, () => enter(token));
		root.replaceChildren(view.el);
		view.focus();
		return;
	}
	buildShell();
	route();
	api.agents().then((agents) => shell?.start.setAgents(agents), () => {}); // else the server chooses
}

// ---- the shell ----------------------------------------------------------------------

function buildShell() {
	const sidebar = new Sidebar({
		open: go,
		create: () => go(null),
		hide: () => showSidebar(false),
		rename,
		close,
		copyLink,
		menu: settingsMenu,
		showClosed: (on) => ((withClosed = on), refresh()),
	});
	const start = new StartView({
		on: { create, save: (choice) => storage.savePreferences({ start: choice }), menu: () => showSidebar(true) },
		upload: (...file) => api.upload(...file),
		choice: storage.preferences().start,
	});
	const frames = new FramesView(() => showFrames(false));
	const main = h('main.main', {}, start.el);
	const skip = h('a.skip', { href: '#', text: 'Skip to the message field', onclick: (event) => (event.preventDefault(), focusMain()) });
	const el = h('div.shell', {}, skip, sidebar.el, h('div.menu-veil', { onclick: () => showSidebar(false) }), main, frames.el);
	shell = { el, sidebar, start, frames, main, poll: setInterval(() => document.visibilityState === 'visible' && refresh(), LIST_EVERY) };
	root.replaceChildren(el);
}

function focusMain() {
	(open.get(current)?.view ?? shell.start).focus();
}

/** On a phone the list of sessions is a drawer. */
function showSidebar(on) {
	const inside = shell.sidebar.el.contains(document.activeElement);
	shell.el.classList.toggle('menu-open', on);
	shell.main.inert = on && narrow.matches;
	if (on) shell.sidebar.create.focus();
	else if (inside && narrow.matches) shell.main.querySelector('.session:not([hidden]) .bar button, .start:not([hidden]) .bar button').focus();
}

function showFrames(on = shell.frames.el.hidden) {
	shell.frames.show(on && open.get(current)?.session);
	if (!on) focusMain();
}

// ---- which session is on the screen ---------------------------------------------------

function go(id) {
	if (id !== current) history.pushState(null, '', id ? `#session=${id}` : location.pathname);
	route();
}

function route() {
	if (!shell) return;
	const id = fragment().get('session');
	showSidebar(false);
	current = id;
	const entry = id && openSession(id);
	const el = entry ? entry.view.el : shell.start.el;
	if (!el.isConnected) shell.main.append(el);
	for (const child of shell.main.children) child.hidden = child !== el;
	if (entry) retire(entry);
	if (!shell.frames.el.hidden) shell.frames.show(entry?.session);
	entry?.view.scroll.keep();
	// On a phone the keyboard would cover what one came to read.
	if (!entry || matchMedia('(hover: hover)').matches) focusMain();
	attend();
}

/** The most recent few stay connected, and all that still have something to do. */
function retire(entry) {
	open.delete(entry.session.id);
	open.set(entry.session.id, entry);
	for (const [id, { session, view }] of open) {
		if (open.size <= KEPT_OPEN) break;
		if (session === entry.session || session.running || session.outbox.size) continue;
		session.stop();
		view.el.remove();
		open.delete(id);
	}
}

function openSession(id, state = listed.find((one) => one.session_id === id)) {
	if (open.has(id)) return open.get(id);
	const url = `${location.origin.replace(/^http/, 'ws')}/sessions/${encodeURIComponent(id)}/ws`;
	const session = new Session(id, state, { api, token: api.token, storage, Wire, createTranscript, reduce, seed, promptParts, url });
	const row = () => ({ id, title: session.title });
	const view = new SessionView(session, {
		parts: promptParts,
		upload: (...file) => api.upload(...file),
		draft: { text: storage.draft(id), save: (text) => storage.saveDraft(id, text) },
		on: {
			showSidebar: () => showSidebar(true),
			startNew: () => go(null),
			entries: () => [
				{ label: 'Rename…', icon: 'pencil', onselect: () => rename(row()) },
				{ label: 'Copy link', icon: 'link', onselect: () => copyLink(row()) },
				{ label: 'Raw frames', icon: 'frames', keys: 'Ctrl `', onselect: () => showFrames() },
				session.state?.cwd ? { heading: `Working in ${session.state.cwd}` } : 'line',
				{ label: 'Close session…', icon: 'close', danger: true, disabled: session.closed, onselect: () => close(row()) },
			],
		},
	});
	session.on('change', attendSoon);
	session.on('problem', toast);
	open.set(id, { session, view, seen: null });
	session.start();
	return open.get(id);
}

async function create(options, { text, blocks, files }) {
	const state = await api.create(options);
	const { session } = openSession(state.session_id, { ...options, ...state });
	session.send({ prompt: [...(text ? [{ type: 'text', text }] : []), ...blocks], files });
	go(state.session_id);
	refresh();
}

async function rename({ id, title }) {
	const name = await ask({ title: 'Rename the session', input: title, action: 'Rename' });
	if (name) attempt(() => open.get(id)?.session.rename(name) ?? api.update(id, { title: name }));
}

async function close({ id, title }) {
	const text = `${title ? `“${title}”: ` : ''}the agent is stopped. The conversation can be read for a while, but not continued.`;
	if (await ask({ title: 'Close this session?', text, action: 'Close session', danger: true })) attempt(() => api.close(id));
}

async function attempt(action) {
	try {
		await action();
		await refresh();
	} catch (error) {
		toast(error.message);
	}
}

async function copyLink({ id }) {
	const done = await copyText(`${location.origin}/#session=${id}`);
	toast(done ? 'Link copied.' : 'The link could not be copied.');
}

// ---- the list ---------------------------------------------------------------------------

async function refresh() {
	const mine = api;
	try {
		const sessions = await mine.sessions(withClosed);
		if (api !== mine) return;
		listed = sessions;
		drawList();
	} catch {
		if (shell && api === mine) shell.sidebar.fail('The list could not be read again.');
	}
}

function drawList() {
	const rows = new Map();
	for (const one of listed) {
		const state = one.closed_at ? 'closed' : one.pending_permissions?.length ? 'waiting' : one.state;
		rows.set(one.session_id, { id: one.session_id, title: one.meta?.title, agent: one.agent, at: one.last_turn_at ?? one.created_at, state });
	}
	// Of what is open here we know more, and sooner.
	for (const [id, { session }] of open) {
		if (!session.synced) continue;
		const { at = session.state?.created_at ?? 0 } = rows.get(id) ?? {};
		const state = session.closed ? 'closed' : session.waiting ? 'waiting' : session.running ? 'running' : 'idle';
		if (session.closed && !withClosed && id !== current) rows.delete(id);
		else rows.set(id, { id, title: session.title, agent: session.agent, at: Math.max(at, (session.model.turns.at(-1)?.startedAt ?? 0) / 1000), state });
	}
	shell?.sidebar.update([...rows.values()], current);
}

// ---- attention: title, icon, list, notifications, speech ----------------------------------

let attendedAt = 0;
let attendTimer = 0;

function attendSoon() {
	const wait = attendedAt + ATTEND_EVERY - Date.now();
	if (wait <= 0) attend();
	else attendTimer ||= setTimeout(attend, wait);
}

function attend() {
	clearTimeout(attendTimer);
	attendTimer = 0;
	attendedAt = Date.now();
	const sessions = [...open.values()].filter(({ session }) => session.synced);
	for (const entry of sessions) tell(entry);
	const any = (name) => sessions.some(({ session }) => session[name]);
	attention.show(any('waiting') ? 'waiting' : any('running') ? 'running' : 'idle', open.get(current)?.session.title);
	drawList();
}

/** Tells what is new since the last look. */
function tell(entry) {
	const { session, seen } = entry;
	const { agent, model, running, title } = session;
	entry.seen = { running, waiting: model.waiting.size };
	if (!seen) return; // what was so when one came is no news
	const notify = (words, body) => attention.notify(storage.preferences().notify, words, body, () => go(session.id));
	if (model.waiting.size > seen.waiting) {
		const what = [...model.waiting.values()].at(-1).title;
		attention.alert(`${agent} asks for your permission: ${what}`);
		notify(`${agent} waits for you`, what || title);
	}
	if (running && !seen.running) attention.say(`${agent} is working.`);
	if (running || !seen.running) return;
	const turn = model.turns.at(-1);
	const answer = textOf(turn.items.findLast(({ kind }) => kind === 'message')?.parts);
	attention.say(turn.stopReason === 'end_turn' ? `${agent} has finished. ${answer.slice(0, 600)}` : `The turn has ended: ${turn.error?.message ?? turn.stopReason}`);
	notify(`${agent} has finished`, title);
}

// ---- settings ---------------------------------------------------------------------------------

function applyTheme() {
	document.documentElement.dataset.theme = storage.preferences().theme ?? 'system';
}

function settingsMenu() {
	const { theme = 'system', notify } = storage.preferences();
	const themed = (name, label) => ({ label, checked: theme === name, onselect: () => (storage.savePreferences({ theme: name }), applyTheme()) });
	return [
		{ heading: 'Appearance' },
		themed('system', 'Like the system'),
		themed('light', 'Light'),
		themed('dark', 'Dark'),
		'line',
		{ label: notify ? 'Do not notify me' : 'Notify me when I am away', icon: 'bell', onselect: toggleNotify },
		{ label: 'Keyboard', icon: 'keyboard', onselect: shortcuts },
		{ label: 'Sign out', icon: 'leave', onselect: () => signOut('') },
	];
}

async function toggleNotify() {
	const notify = !storage.preferences().notify && (await globalThis.Notification?.requestPermission()) === 'granted';
	storage.savePreferences({ notify });
	toast(notify ? 'You will be told when an agent waits for you or has finished.' : 'Notifications are off.');
}

// ---- the keyboard, and the world outside ---------------------------------------------------------

document.addEventListener('keydown', (event) => {
	if (!shell || document.querySelector('dialog[open]')) return;
	const { key, altKey, ctrlKey, shiftKey, target } = event;
	const command = ctrlKey || event.metaKey;
	const entry = open.get(current);
	if (command && key.toLowerCase() === 'k') {
		showSidebar(true);
		shell.sidebar.find.select();
	} else if (command && shiftKey && key.toLowerCase() === 'o') go(null);
	else if (command && key === '.') entry?.view.showWaiting();
	else if (ctrlKey && key === '`' && entry) showFrames();
	else if (altKey && (key === 'ArrowUp' || key === 'ArrowDown') && !target.value) {
		const { order } = shell.sidebar;
		const next = order.indexOf(current) + (key === 'ArrowUp' ? -1 : 1);
		if (order.length) go(order.at(next % order.length));
	} else if (key === 'Escape' && shell.el.classList.contains('menu-open')) showSidebar(false);
	else if (key === 'Escape' && entry?.session.running && !event.defaultPrevented && target.tagName !== 'INPUT') entry.session.cancel();
	else return;
	event.preventDefault();
});

/** A phone that slept, a network that is back: worth a look at every connection. */
function wake() {
	if (!shell || document.visibilityState !== 'visible') return;
	for (const { session } of open.values()) session.wire.wake();
	refresh();
}
document.addEventListener('visibilitychange', wake);
window.addEventListener('online', wake);
window.addEventListener('pageshow', wake);
// A sign-in link may be opened in a tab that was here already.
window.addEventListener('popstate', () => (fragment().has('token') ? begin() : route()));
// A file that is dropped beside the target must not replace the page.
for (const name of ['dragover', 'drop']) window.addEventListener(name, (event) => event.preventDefault());

begin();
