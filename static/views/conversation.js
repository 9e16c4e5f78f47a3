/**
 * conversation.js: the transcript on the screen.
 *
 * The model says what is dirty; once a frame this draws it, within a budget, and
 * leaves the rest for the next frame. Opening a long conversation builds its end
 * first, shows it, and fills in what is above while nobody needs the thread.
 */
import { h, oncePerFrame } from './dom.js';
import { TurnView } from './turn.js';

const FRAME_BUDGET = 10; //   ms of a frame for drawing
const OPEN_BUDGET = 90; //    ms until the end of a conversation must be on the screen
const SLICE = 16; //          items built at a time when filling in above
const IDLE_BUDGET = 12;

export class ConversationView {
  /** `context`: agentName, answer, focusComposer, retry, parts (promptParts). */
  constructor(context, scroll) {
    this.turns = h('div.turns');
    this.outbox = h('div.outbox');
    this.el = h('div.conversation', { role: 'log', 'aria-live': 'off', 'aria-label': 'Conversation', 'aria-busy': 'false' }, this.turns, this.outbox);
    this.scroll = scroll; // set by the session view, which owns the scroller
    this.model = null;
    this.turnViews = new Map();
    this.first = 0; // turns before this one have no view yet
    this.idle = [];
    this.draw = oncePerFrame(() => this.#draw());
    this.context = {
      ...context,
      views: new WeakMap(),
      again: (item) => {
        this.model.dirty.add(item);
        this.draw();
      },
      again_: (turn, go) => context.retry(turn, go),
      isLast: (turn) => turn === this.model.turns[this.model.turns.length - 1],
      waiting: () => this.model.waiting.values(),
      whenIdle: (fn) => {
        this.idle.push(fn);
        this.#later();
      },
    };
  }

  /** Shows a model from its end. */
  load(model) {
    this.model = model;
    model.dirty.clear();
    this.turns.replaceChildren();
    this.turnViews.clear();
    this.context.views = new WeakMap();
    this.idle = [];
    this.first = model.turns.length;
    const begun = performance.now();
    const enough = 2 * window.innerHeight;
    let built = 0;
    // Measuring forces a layout, so not after every slice.
    while (this.#fill()) {
      built += 1;
      if (performance.now() - begun > OPEN_BUDGET) break;
      if (built % 3 === 0 && this.turns.scrollHeight > enough) break;
    }
    this.#settle();
    this.scroll.toEnd();
    this.#later();
    this.#tick();
  }

  /** Another slice above what is there; false when all is there. */
  #fill() {
    const view = this.turnViews.get(this.model.turns[this.first]);
    if (view?.from > 0) {
      view.prepend(SLICE);
      return true;
    }
    if (this.first === 0) return false;
    this.first -= 1;
    const turn = this.model.turns[this.first];
    const fresh = new TurnView(turn, this.context, this.context.parts, true);
    this.turnViews.set(turn, fresh);
    fresh.prepend(SLICE);
    fresh.settle(turn.status !== 'running' && !this.context.isLast(turn));
    this.turns.prepend(fresh.el);
    return true;
  }

  #draw() {
    const { model } = this;
    if (!model) return;
    const deadline = performance.now() + FRAME_BUDGET;
    const enough = () => performance.now() > deadline;
    let left = false;
    let grew = false;
    const turns = [];
    for (const thing of model.dirty) if (thing.kind === 'turn') turns.push(thing);
    for (const turn of turns) {
      let view = this.turnViews.get(turn);
      if (!view) {
        if (model.turns.indexOf(turn) < this.first) {
          model.dirty.delete(turn); // will be built as it is then
          continue;
        }
        view = new TurnView(turn, this.context, this.context.parts, false);
        this.turnViews.set(turn, view);
        this.turns.append(view.el);
        grew = true;
      }
      view.update();
      if (view.append(enough, true)) model.dirty.delete(turn);
      else left = true;
      if (enough()) break;
    }
    for (const item of model.dirty) {
      if (item.kind === 'turn') continue;
      if (enough()) {
        left = true;
        break;
      }
      model.dirty.delete(item);
      if (item !== model) this.context.views.get(item)?.update();
    }
    if (grew) this.#settle();
    for (const index of model.running) this.turnViews.get(model.byIndex.get(index))?.update();
    this.scroll.keep();
    if (left || model.dirty.size) this.draw();
    this.#tick();
  }

  /** What is neither last nor running may be skipped by the browser off screen. */
  #settle() {
    const { turns } = this.model;
    for (const turn of turns.slice(-3)) {
      this.turnViews.get(turn)?.settle(turn.status !== 'running' && !this.context.isLast(turn));
    }
  }

  /** Fills in above, and does small chores, while the thread is free. */
  #later() {
    if (this.asked) return;
    this.asked = true;
    const run = () => {
      this.asked = false;
      if (!this.model) return;
      const deadline = performance.now() + IDLE_BUDGET;
      let more = true;
      while (more && performance.now() < deadline) {
        const chore = this.idle.shift();
        if (chore) chore();
        else more = this.#prepend();
      }
      if (more || this.idle.length) this.#later();
    };
    if (typeof requestIdleCallback === 'function') requestIdleCallback(run, { timeout: 500 });
    else setTimeout(run, 30);
  }

  #prepend() {
    const { scroller } = this.scroll;
    if (this.scroll.following || CSS.supports('overflow-anchor', 'auto')) {
      const more = this.#fill();
      if (this.scroll.following) this.scroll.keep();
      return more;
    }
    // Safari does not hold the reader's place when something is put above it.
    const before = scroller.scrollHeight;
    const more = this.#fill();
    scroller.scrollTop += scroller.scrollHeight - before;
    return more;
  }

  /** Seconds go by only while something runs. */
  #tick() {
    if (this.clock || !this.model?.running.size) return;
    const tick = () => {
      const now = Date.now();
      for (const index of this.model.running) this.turnViews.get(this.model.byIndex.get(index))?.tick(now);
      if (!this.model.running.size || !this.el.isConnected) {
        clearInterval(this.clock);
        this.clock = 0;
      }
    };
    this.clock = setInterval(tick, 1000);
  }
}
