/**
 * session.js: one open session. It holds the transcript, feeds it from the wire,
 * and keeps what the log does not know yet: prompts on their way (outbox) and
 * prompts that wait for their turn (queue). No DOM.
 *
 * Its parts are passed in by app.js. Views listen with on(name, fn):
 *   change   something is different (often; draw once a frame)
 *   synced   the log has been read up to the head: show it
 *   reset    the log begins anew
 *   frame    (dir, text, ts) for the raw view
 *   problem  (message) something to tell
 */
const FRAMES_KEPT = 500;
const REFRESH_AFTER = 700; // ms from a change of settings to reading them back

export class Session {
  #listeners = new Map();
  #parts;
  #refreshTimer = 0;

  constructor(id, parts) {
    this.#parts = parts;
    this.id = id;
    this.state = parts.state ?? null; //  the last GET /sessions/{id} or `ready`
    this.model = parts.createTranscript();
    this.outbox = new Map(); //           prompt id -> {id, prompt, files, state, error}
    this.queue = new Map(); //            turn_index -> {turn_index, id, prompt}
    this.frames = [];
    this.synced = false;
    this.head = null;
    this.wire = new parts.Wire({
      url: parts.url,
      credential: async () => ({ token: parts.api.token }),
      after: 0,
      on: {
        entry: (entry) => this.#entry(entry),
        ready: (frame) => this.#ready(frame),
        accepted: (frame) => this.#accepted(frame),
        rejected: (promptId, error) => this.#rejected(promptId, error),
        reset: () => this.#reset(),
        error: (frame) => this.#failed(frame),
        status: () => this.#emit('change'),
        frame: (dir, frame, text) => this.#keepFrame(dir, frame, text),
      },
    });
  }

  start() {
    for (const saved of this.#parts.storage.outbox(this.id)) this.#send(saved);
    this.wire.start();
  }

  stop() {
    clearTimeout(this.#refreshTimer);
    this.wire.stop();
    this.#listeners.clear();
  }

  on(name, listener) {
    if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
    this.#listeners.get(name).add(listener);
    return () => this.#listeners.get(name)?.delete(listener);
  }

  #emit(name, ...values) {
    for (const listener of this.#listeners.get(name) ?? []) listener(...values);
  }

  // ---- what views ask ---------------------------------------------------------

  get title() {
    return this.state?.meta?.title || this.model.title || '';
  }
  get agent() {
    return this.state?.agent ?? 'the agent';
  }
  get running() {
    return this.model.running.size > 0;
  }
  get waiting() {
    return this.model.waiting.size > 0;
  }
  get closed() {
    return Boolean(this.model.closed || this.state?.closed_at);
  }

  /** What was asked in this session, oldest first, for arrow up. */
  history() {
    const texts = [];
    for (const turn of this.model.turns) {
      const text = turn.prompt ? this.#parts.promptParts(turn.prompt).text : '';
      if (text && text !== texts[texts.length - 1]) texts.push(text);
    }
    return texts;
  }

  // ---- what views do ------------------------------------------------------------

  send({ text, blocks = [], files = [] }) {
    const prompt = blocks.length ? [...(text ? [{ type: 'text', text }] : []), ...blocks] : text || ' ';
    this.#send({ prompt, files });
    if (!this.title && text) this.rename(text.split('\n')[0].slice(0, 80)).catch(() => {});
  }

  /** Asks the same again, as the log has it. */
  again({ prompt, files = [] }) {
    this.#send({ prompt, files });
  }

  #send({ id, prompt, files }) {
    const { id: promptId } = this.wire.prompt(prompt, { id, files });
    this.outbox.set(promptId, { id: promptId, prompt, files, state: 'sending', error: null });
    this.#saveOutbox();
    this.#emit('change');
  }

  /** A prompt that failed to go out, or has not gone out yet, is taken back. */
  discard(promptId) {
    const prompt = this.outbox.get(promptId);
    this.outbox.delete(promptId);
    this.wire.forget(promptId);
    this.#saveOutbox();
    this.#emit('change');
    return prompt;
  }

  /** Takes a queued prompt out. */
  unqueue(turnIndex) {
    if (!this.wire.cancel(turnIndex)) this.#emit('problem', 'Not connected: the prompt could not be taken out.');
  }

  cancel() {
    if (!this.wire.cancel()) this.#emit('problem', 'Not connected: the agent could not be stopped.');
  }

  answer(requestId, optionId) {
    return this.wire.answer(requestId, optionId);
  }

  setMode(id) {
    if (!this.#set(this.wire.setMode(id))) return;
    this.model.modes = { ...this.model.modes, currentModeId: id };
  }
  setModel(id) {
    if (!this.#set(this.wire.setModel(id))) return;
    this.model.models = { ...this.model.models, currentModelId: id };
  }
  setOption(key, value) {
    if (!this.#set(this.wire.setConfigOption(key, value))) return;
    this.model.configOptions = this.model.configOptions.map((option) => (option.id === key ? { ...option, currentValue: value } : option));
  }

  /** Shown at once; what the agent made of it is read back a moment later. */
  #set(sent) {
    if (!sent) this.#emit('problem', 'Not connected: nothing was changed.');
    else this.#refreshSoon();
    queueMicrotask(() => this.#emit('change'));
    return sent;
  }

  async rename(title) {
    this.state = await this.#parts.api.update(this.id, { title });
    this.#emit('change');
  }

  async close() {
    await this.#parts.api.close(this.id);
  }

  // ---- what the wire says -----------------------------------------------------------

  #entry(entry) {
    this.#parts.reduce(this.model, entry);
    if (entry.type === 'turn_start') {
      this.queue.delete(entry.turn_index);
      if (entry.id != null && this.outbox.delete(entry.id)) this.#saveOutbox();
    }
    this.#caughtUp();
    this.#emit('change');
  }

  #ready(frame) {
    this.state = { ...this.state, ...frame };
    this.head = frame.head;
    this.#parts.seed(this.model, frame);
    this.queue = new Map((frame.queued ?? []).map((one) => [one.turn_index, one]));
    this.#caughtUp();
    this.#emit('change');
  }

  #caughtUp() {
    if (this.synced || this.head == null || this.model.head < this.head) return;
    this.synced = true;
    this.#emit('synced');
  }

  #accepted({ id, turn_index: index, queued, duplicate }) {
    const sent = this.outbox.get(id);
    if (!sent) return;
    if (queued && !this.model.byIndex.has(index)) {
      this.queue.set(index, { turn_index: index, id, prompt: sent.prompt });
      this.outbox.delete(id);
    } else if (duplicate) {
      this.outbox.delete(id); // its turn is in the log, or will be at once
    } else {
      sent.state = 'accepted';
    }
    this.#saveOutbox();
    this.#emit('change');
  }

  #rejected(id, error) {
    const sent = this.outbox.get(id);
    if (!sent || error.code === 'forgotten') return;
    if (error.code === 'stopped') return; // this page lets go of the session; the prompt is kept for next time
    sent.state = 'failed';
    sent.error = error;
    this.#saveOutbox();
    this.#emit('change');
  }

  #failed(frame) {
    // A second click on Stop, or an answer that came second, is no news.
    if (frame.code !== 'not_found') this.#emit('problem', frame.message);
    this.#refreshSoon();
  }

  #reset() {
    this.model = this.#parts.createTranscript();
    this.synced = false;
    this.#emit('reset');
  }

  #refreshSoon() {
    clearTimeout(this.#refreshTimer);
    this.#refreshTimer = setTimeout(async () => {
      try {
        const state = await this.#parts.api.session(this.id);
        this.state = { ...this.state, ...state };
        this.#parts.seed(this.model, state);
        this.#emit('change');
      } catch {
        // the next `ready` tells it anyway
      }
    }, REFRESH_AFTER);
  }

  /** Prompts that are not accepted survive a reload, with their id. */
  #saveOutbox() {
    this.#parts.storage.saveOutbox(
      this.id,
      [...this.outbox.values()].filter((one) => one.state === 'sending').map(({ id, prompt, files }) => ({ id, prompt, files })),
    );
  }

  #keepFrame(dir, frame, text) {
    // A credential is nobody's business, not even on one's own screen.
    const shown = frame.type === 'auth' ? JSON.stringify({ ...frame, ...(frame.token && { token: '…' }), ...(frame.ticket && { ticket: '…' }) }) : text;
    const kept = { dir, text: shown, ts: Date.now() };
    this.frames.push(kept);
    if (this.frames.length > FRAMES_KEPT * 2) this.frames.splice(0, FRAMES_KEPT);
    this.#emit('frame', kept);
  }
}
