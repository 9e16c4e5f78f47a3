/**
 * wire.js: one clawdforge session over a WebSocket, for as long as it takes.
 *
 * This is the reference client. It has no DOM and no dependency, runs in any
 * browser and in Node >= 22, and is meant to be copied into your own project.
 * The contract it speaks is docs/PROTOCOL (version 1).
 *
 *     const wire = new Wire({
 *       url: 'wss://host/sessions/<id>/ws',
 *       credential: async () => ({ token: 'cf_…' }),   // or ({ ticket: '…' })
 *       after: 0,                                      // replay the whole log first
 *       on: {
 *         entry: (entry) => …,     // numbered log entries: in order, each exactly once
 *         ready: (frame) => …,     // after every (re)connect, before anything else
 *         status: (status) => …,   // {state, …}: see below
 *       },
 *     });
 *     wire.start();
 *     const { id, accepted } = wire.prompt('Hello');
 *     const { turn_index, queued } = await accepted;   // rejects with a WireError
 *
 * What it promises:
 * - Entries arrive without gap or repeat, across any number of reconnects. It
 *   remembers the last `seq` and resumes `after` it. A hole in the numbers, or a
 *   heartbeat whose head we never reach, makes it reconnect and read on.
 * - A prompt is run exactly once. It keeps its `id` and is sent again after a
 *   reconnect until the server has accepted it; the server drops duplicates.
 * - It comes back by itself, with full jitter (random() × a doubling bound), and
 *   stays away when the server says so (close codes from 4500).
 *
 * Status: `{state: 'idle' | 'connecting' | 'live' | 'away' | 'stopped', …}`.
 * `away` carries `retryAt` (ms) and `attempt`; `stopped` carries `code` and
 * `reason` and is final until start() is called again.
 */

export const PROTOCOL = 1;

/** The server refuses longer up-frames (close 1009): do not even try. */
export const MAX_FRAME_BYTES = 4 * 1024 * 1024;

const BACKOFF_BASE = 500; //  first bound of the wait before a reconnect, ms
const BACKOFF_CAP = 30_000; //  and the last
const STABLE_AFTER = 10_000; //  a connection this old was a good one: forget the failures
const OPEN_TIMEOUT = 15_000; //  from connect to `ready`
const SILENCE_LIMIT = 45_000; //  the server speaks every 20 s; two missed and a bit
const TAIL_GRACE = 5_000; //  how long a heartbeat's head may be ahead of us without progress
const PONG_LIMIT = 5_000; //  answer to our own ping after a wake-up

/** Failures the wire deals with by itself: the prompt stays pending. */
const RETRY_CODES = new Set(['rate_limited', 'draining']);

/** Why a prompt or a connection was refused. `code` is the contract's. */
export class WireError extends Error {
  constructor(code, message, retryable = false) {
    super(message || code);
    this.name = 'WireError';
    this.code = code;
    this.retryable = retryable;
  }
}

/** What to do after a close: the table of the contract as one function. */
export function afterClose(code) {
  if (code >= 4500 && code < 5000) return 'stop';
  if (code === 4002) return 'restart'; // our position means nothing there: from the beginning
  if (code === 1009) return 'shrink'; // resume, but never resend what was too big
  if (code === 1013 || code === 4005) return 'slow'; // resume, but give it air
  return 'resume';
}

/** Full jitter: anywhere between now and the bound, which doubles up to a cap. */
export function backoff(attempt, random = Math.random) {
  return random() * Math.min(BACKOFF_CAP, BACKOFF_BASE * 2 ** attempt);
}

export class Wire {
  #url;
  #credential;
  #on;
  #env;
  #socket = null;
  #status = { state: 'idle' };
  #last; //          seq of the newest entry we have handed on; null: live from now
  #attempt = 0;
  #readyAt = 0;
  #heardAt = 0;
  #bye = null; //    the server's parting words, if it had time for them
  #timers = {}; //   by purpose: retry, open, silence, tail, pong, resend
  #prompts = new Map(); // id -> {frame, text, settle…}: not accepted yet
  #answers = new Map(); // request_id -> frame: permission answers not yet confirmed

  constructor({ url, credential, after = 0, on = {}, env = {} }) {
    this.#url = url;
    this.#credential = credential;
    this.#last = after;
    this.#on = on;
    // Everything that makes time pass or dice roll can be passed in by tests.
    this.#env = {
      WebSocket: globalThis.WebSocket,
      now: () => Date.now(),
      random: Math.random,
      setTimeout: (fn, ms) => setTimeout(fn, ms),
      clearTimeout: (timer) => clearTimeout(timer),
      uuid: defaultUuid,
      ...env,
    };
  }

  get status() {
    return this.#status;
  }
  get last() {
    return this.#last;
  }
  /** Prompts that the server has not confirmed yet, oldest first. */
  get pending() {
    return [...this.#prompts.values()].map((p) => p.frame);
  }

  /** Connects, and keeps doing so. Also the way back from `stopped`. */
  start() {
    if (this.#status.state === 'idle' || this.#status.state === 'stopped') {
      this.#attempt = 0;
      this.#connect();
    }
  }

  /** Ends it for good. Prompts that are not accepted by now are rejected. */
  stop() {
    this.#leave(1000);
    this.#setStatus({ state: 'idle' });
    for (const id of [...this.#prompts.keys()]) this.#reject(id, new WireError('stopped', 'The connection was ended here.'));
  }

  /**
   * Something happened that makes the connection worth a look: the page became
   * visible, the phone woke up, the network is back. Cheap; call it freely.
   */
  wake() {
    const { state } = this.#status;
    if (state === 'away') {
      this.#connect();
    } else if (state === 'live' && !this.#timers.pong) {
      this.#write({ type: 'ping', id: this.#env.uuid() });
      const asked = this.#env.now();
      this.#timer('pong', PONG_LIMIT, () => {
        if (this.#heardAt < asked) this.#drop('no pong');
      });
    } else if (state === 'connecting') {
      this.#checkOpen();
    }
  }

  /**
   * Asks the agent. `prompt` is a string or ACP content blocks, `files` are
   * tokens from POST /files. Safe to call at any time; what cannot be sent now
   * is sent as soon as we are back. Give the same `id` to ask the same thing.
   */
  prompt(prompt, { id = this.#env.uuid(), files } = {}) {
    const frame = { type: 'prompt', id, prompt };
    if (files?.length) frame.files = files;
    let settle;
    const accepted = new Promise((resolve, reject) => (settle = { resolve, reject }));
    accepted.catch(() => {}); // a caller who does not care must not crash the page
    const text = JSON.stringify(frame);
    this.#prompts.set(id, { frame, text, ...settle });
    if (utf8Length(text) > MAX_FRAME_BYTES) {
      this.#reject(id, new WireError('payload_too_large', 'This prompt is larger than the server takes (4 MiB).'));
    } else if (this.#status.state === 'live') {
      this.#writeText(text, frame);
    }
    return { id, accepted };
  }

  /** Forgets a prompt that was never accepted. False if it is too late for that. */
  forget(id) {
    return this.#reject(id, new WireError('forgotten', 'Taken back before it was sent.'));
  }

  /** Stops the running turn, or with an index that one, running or queued. */
  cancel(turnIndex) {
    return this.send(turnIndex == null ? { type: 'cancel' } : { type: 'cancel', turn_index: turnIndex });
  }

  /** Answers a permission request; `null` means cancelled. Kept while we are away. */
  answer(requestId, optionId) {
    const frame = { type: 'permission', request_id: requestId, id: requestId };
    if (optionId == null) frame.outcome = 'cancelled';
    else frame.option_id = optionId;
    this.#answers.set(requestId, frame);
    return this.send(frame);
  }

  setMode(mode) {
    return this.send({ type: 'set_mode', mode });
  }
  setModel(model) {
    return this.send({ type: 'set_model', model });
  }
  setConfigOption(key, value) {
    return this.send({ type: 'set_config_option', key, value });
  }
  closeSession() {
    return this.send({ type: 'close' });
  }

  /** Any other frame, now or never: false when there is no live connection. */
  send(frame) {
    if (this.#status.state !== 'live') return false;
    this.#write(frame);
    return true;
  }

  // ---- connecting -------------------------------------------------------

  async #connect() {
    this.#leave(1000);
    this.#bye = null;
    this.#openedAt = this.#env.now();
    this.#setStatus({ state: 'connecting', attempt: this.#attempt });
    this.#timer('open', OPEN_TIMEOUT, () => this.#drop('timeout'));
    // The credential first: the server allows 5 s between open and auth.
    const mine = (this.#socket = { pending: true });
    let credential;
    try {
      credential = await this.#credential();
    } catch (error) {
      if (this.#socket !== mine) return;
      // A provider that knows it is refused says so; anything else may pass.
      if (error?.final) this.#stopped(4500, error.message);
      else this.#closed(1006, 'no credential');
      return;
    }
    if (this.#socket !== mine) return; // someone stopped or restarted us meanwhile
    let socket;
    try {
      socket = new this.#env.WebSocket(typeof this.#url === 'function' ? this.#url() : this.#url);
    } catch {
      this.#closed(1006, 'bad address');
      return;
    }
    this.#socket = socket;
    socket.onopen = () => {
      if (socket !== this.#socket) return;
      const auth = { type: 'auth', ...credential };
      if (this.#last != null) auth.after = this.#last;
      this.#write(auth);
    };
    socket.onmessage = (message) => socket === this.#socket && this.#received(message.data);
    socket.onclose = (event) => socket === this.#socket && this.#closed(event.code, event.reason);
    socket.onerror = () => {}; // a close always follows, and says more
  }
  #openedAt = 0;

  #checkOpen() {
    if (this.#env.now() - this.#openedAt > OPEN_TIMEOUT) this.#drop('timeout');
  }

  /** Lets go of the socket without waiting for its closing handshake. */
  #leave(code) {
    const socket = this.#socket;
    this.#socket = null;
    for (const name of Object.keys(this.#timers)) this.#timer(name);
    if (socket?.close) {
      socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
      try {
        socket.close(code);
      } catch {
        // closing what never opened may throw; there is nothing left to do with it
      }
    }
  }

  /** The connection is dead although nobody told us. */
  #drop(reason) {
    this.#leave(1000);
    this.#closed(1006, reason);
  }

  #closed(code, reason) {
    const wasReady = this.#status.state === 'live';
    const bye = this.#bye;
    this.#leave(1000);
    const verdict = afterClose(code);
    if (verdict === 'stop') {
      this.#stopped(code, bye?.reason || reason);
      return;
    }
    if (wasReady && this.#env.now() - this.#readyAt >= STABLE_AFTER) this.#attempt = 0;
    if (verdict === 'restart') {
      this.#last = 0;
      this.#on.reset?.();
    }
    if (verdict === 'shrink') this.#rejectLargest();
    if (verdict === 'slow') this.#attempt = Math.max(this.#attempt, 3);
    const wait = backoff(this.#attempt, this.#env.random) + (bye?.retry_after_ms ?? 0);
    this.#attempt += 1;
    this.#timer('retry', wait, () => this.#connect());
    this.#setStatus({ state: 'away', code, reason: bye?.reason || reason, attempt: this.#attempt, retryAt: this.#env.now() + wait });
  }

  #stopped(code, reason) {
    this.#leave(1000);
    this.#setStatus({ state: 'stopped', code, reason });
    const error = new WireError(code === 4508 ? 'session_closed' : 'unauthorized', reason || `closed with ${code}`);
    for (const id of [...this.#prompts.keys()]) this.#reject(id, error);
  }

  // ---- receiving --------------------------------------------------------

  #received(data) {
    this.#heardAt = this.#env.now();
    let frame;
    try {
      frame = JSON.parse(data);
    } catch {
      return; // not ours to judge: the contract has only JSON text frames
    }
    this.#on.frame?.('down', frame, data);
    if (typeof frame.seq === 'number') {
      this.#entry(frame);
      return;
    }
    switch (frame.type) {
      case 'ready':
        this.#ready(frame);
        break;
      case 'accepted':
        this.#accept(frame.id, frame);
        break;
      case 'error':
        this.#failed(frame);
        break;
      case 'heartbeat':
        this.#heartbeat(frame.head);
        break;
      case 'bye':
        this.#bye = frame;
        break;
      // pong has done its work by being heard; types we do not know are for later versions
    }
  }

  #ready(frame) {
    this.#readyAt = this.#env.now();
    this.#timer('open');
    this.#last ??= frame.head;
    this.#setStatus({ state: 'live', head: frame.head });
    this.#on.ready?.(frame);
    this.#watch();
    this.#resend();
    for (const answer of this.#answers.values()) this.#write(answer);
  }

  #entry(entry) {
    if (this.#last != null) {
      if (entry.seq <= this.#last) return; // seen
      if (entry.seq > this.#last + 1) {
        this.#drop('gap'); // resumes after #last, so the hole is filled
        return;
      }
    }
    this.#last = entry.seq;
    if (entry.type === 'turn_start' && entry.id != null && this.#prompts.has(entry.id)) {
      // The `accepted` was lost with a connection, but here is the turn itself.
      this.#accept(entry.id, { id: entry.id, turn_index: entry.turn_index, queued: false, duplicate: true });
    }
    if (entry.type === 'permission_resolved') this.#answers.delete(entry.request_id);
    this.#on.entry?.(entry);
  }

  #accept(id, frame) {
    const prompt = this.#prompts.get(id);
    if (!prompt) return;
    this.#prompts.delete(id);
    prompt.resolve({ ...frame });
    this.#on.accepted?.(frame);
  }

  #failed(frame) {
    if (frame.id != null && this.#prompts.has(frame.id)) {
      if (RETRY_CODES.has(frame.code)) {
        const wait = (frame.retry_after_ms ?? 1000) + backoff(2, this.#env.random);
        this.#timer('resend', wait, () => this.#resend());
      } else {
        this.#reject(frame.id, new WireError(frame.code, frame.message, Boolean(frame.retryable)));
      }
      return;
    }
    if (frame.id != null) this.#answers.delete(frame.id);
    this.#on.error?.(frame);
  }

  #reject(id, error) {
    const prompt = this.#prompts.get(id);
    if (!prompt) return false;
    this.#prompts.delete(id);
    prompt.reject(error);
    this.#on.rejected?.(id, error, prompt.frame);
    return true;
  }

  /** 1009 does not say which frame it was; the largest is the best guess. */
  #rejectLargest() {
    let largest = null;
    for (const [id, { text }] of this.#prompts) {
      if (!largest || text.length > largest.size) largest = { id, size: text.length };
    }
    if (largest) this.#reject(largest.id, new WireError('payload_too_large', 'The server did not take this prompt: it is too large.'));
  }

  /** Is there something after our last entry that never came? */
  #heartbeat(head) {
    if (head == null || this.#last == null || head <= this.#last || this.#timers.tail) return;
    const seen = this.#last;
    this.#timer('tail', TAIL_GRACE, () => {
      if (this.#last === seen) this.#drop('lost tail');
      else this.#heartbeat(head); // a long catch-up is under way
    });
  }

  /** A connection may die without a word; a quiet one is not a live one. */
  #watch() {
    const quiet = this.#env.now() - this.#heardAt;
    if (quiet >= SILENCE_LIMIT) this.#drop('silence');
    else this.#timer('silence', SILENCE_LIMIT - quiet, () => this.#watch());
  }

  // ---- sending ----------------------------------------------------------

  #resend() {
    if (this.#status.state !== 'live') return;
    for (const { frame, text } of this.#prompts.values()) this.#writeText(text, frame);
  }

  #write(frame) {
    this.#writeText(JSON.stringify(frame), frame);
  }

  #writeText(text, frame) {
    this.#on.frame?.('up', frame, text);
    try {
      this.#socket.send(text);
    } catch {
      // The close event is on its way; prompts and answers are sent again after it.
    }
  }

  // ---- small things -----------------------------------------------------

  #setStatus(status) {
    this.#status = status;
    this.#on.status?.(status);
  }

  /** One timer per purpose: setting it again, or without a function, clears it. */
  #timer(name, ms, fn) {
    if (this.#timers[name]) this.#env.clearTimeout(this.#timers[name]);
    delete this.#timers[name];
    if (!fn) return;
    this.#timers[name] = this.#env.setTimeout(() => {
      delete this.#timers[name];
      fn();
    }, ms);
  }
}

function utf8Length(text) {
  // Only long texts are worth the exact count.
  return text.length * 3 <= MAX_FRAME_BYTES ? text.length : new TextEncoder().encode(text).length;
}

/** crypto.randomUUID exists only on secure origins; a LAN address is none. */
function defaultUuid() {
  if (globalThis.crypto?.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}
