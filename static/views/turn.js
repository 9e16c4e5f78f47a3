/** turn.js: one prompt, what the agent did with it, and how it ended. */
import { h, setText, uid } from './dom.js';
import { icon } from './icons.js';
import { compact, duration } from './format.js';
import { copyButton } from './code.js';
import { MessageView, ThoughtView, promptBubble } from './messages.js';
import { NoteView, PlanView, RawView } from './notes.js';
import { ToolView } from './tool.js';

const VIEWS = { message: MessageView, user: MessageView, thought: ThoughtView, tool: ToolView, plan: PlanView, note: NoteView, raw: RawView };

const CHUNK = 24; // items that the browser may skip together when they are off screen

/** How a turn ended, when there is something to say about it. */
const ENDINGS = {
  cancelled: { words: 'Stopped', icon: 'stop', calm: true },
  max_tokens: { words: 'The answer reached its length limit', icon: 'info', again: 'Continue' },
  max_turn_requests: { words: 'The agent reached its limit of steps for one turn', icon: 'info', again: 'Continue' },
  refusal: { words: 'The agent declined to go on with this', icon: 'info' },
  error: { words: 'Something went wrong', icon: 'alert', bad: true, again: 'Try again' },
};
const ERRORS = {
  agent_failed: 'The agent stopped unexpectedly',
  agent_timeout: 'The turn took too long and was ended',
  agent_unavailable: 'The agent could not be started',
  server_restarted: 'The server was restarted during this turn',
  draining: 'The server is shutting down',
};

export class TurnView {
  /** With `later`, its items wait for prepend(); else append() builds them. */
  constructor(turn, context, parts, later) {
    this.turn = turn;
    this.context = context;
    this.from = this.to = later ? turn.items.length : 0;
    const id = uid('turn');
    this.heading = h('h2.offscreen', { id });
    this.head = h('div.turn-head');
    this.body = h('div.turn-body');
    this.foot = h('div.turn-foot');
    this.el = h('section.turn', { 'aria-labelledby': id, 'data-turn': turn.index }, this.heading, this.head, this.body, this.foot);
    this.parts = parts;
    this.promptShown = false;
    this.footShows = null;
    this.update();
  }

  update() {
    const { turn } = this;
    if (turn.prompt && !this.promptShown) {
      this.promptShown = true;
      const parts = this.parts(turn.prompt);
      setText(this.heading, `You: ${parts.text.slice(0, 80) || 'files'}`);
      if (turn.context === 'lost') {
        this.head.append(h('p.note', { 'data-note': 'warning' }, icon('alert'), h('span', { textContent: 'The agent was started anew and does not remember what is above.' })));
      }
      this.head.append(promptBubble(parts));
    } else if (!turn.prompt) {
      setText(this.heading, 'Outside of a turn');
    }
    this.#foot();
  }

  /** Builds views for new items until `enough()`; false if some are left. */
  append(enough, live) {
    const { items } = this.turn;
    while (this.to < items.length) {
      const chunk = this.#chunk('last');
      chunk.append(this.#build(items[this.to], live));
      this.to += 1;
      if (enough()) return this.to >= items.length;
    }
    return true;
  }

  /** Builds up to `count` older items above the first one; false if none are left. */
  prepend(count) {
    if (this.from === 0) return false;
    const { items } = this.turn;
    const chunk = h('div.chunk.settled');
    const first = Math.max(0, this.from - count);
    let height = 0;
    for (let index = first; index < this.from; index += 1) {
      const last = this.context.isLast(this.turn) && items.length < 60;
      chunk.append(this.#build(items[index], last));
      height += guess(items[index]);
    }
    // A good guess of what it will take keeps the scrollbar from jumping.
    chunk.style.containIntrinsicSize = `auto ${height}px`;
    this.body.prepend(chunk);
    this.from = first;
    return this.from > 0;
  }

  #build(item, live) {
    const View = VIEWS[item.kind] ?? RawView;
    const view = new View(item, this.context, live);
    this.context.views.set(item, view);
    return view.el;
  }

  #chunk() {
    let chunk = this.body.lastElementChild;
    if (!chunk || chunk.childElementCount >= CHUNK) {
      chunk?.classList.add('settled');
      chunk = h('div.chunk');
      this.body.append(chunk);
    }
    return chunk;
  }

  /** Once a second while it runs. */
  tick(now) {
    if (this.elapsed) setText(this.elapsed, duration(Math.max(0, now - this.turn.startedAt)));
  }

  #foot() {
    const { turn, context } = this;
    const waits = turn.status === 'running' && [...context.waiting()].some((tool) => tool.turnIndex === turn.index);
    const shows = turn.status === 'running' ? `running${waits}` : `${turn.stopReason}`;
    if (shows === this.footShows) return;
    this.footShows = shows;
    this.elapsed = null;
    if (turn.status === 'running') {
      this.elapsed = h('span.elapsed');
      this.foot.replaceChildren(h('p.working', { 'data-waits': waits }, h('span.spinner'), h('span', { textContent: waits ? 'Waiting for you' : 'Working' }), this.elapsed));
      return;
    }
    if (!turn.stopReason) {
      this.foot.replaceChildren(); // things outside of any turn
      return;
    }
    const ending = ENDINGS[turn.stopReason];
    const parts = [];
    if (ending) {
      const known = turn.error && ERRORS[turn.error.code];
      const words = known ?? ending.words;
      const again = ending.again && (turn.stopReason !== 'error' || turn.error?.retryable);
      parts.push(
        h(
          'div.ending',
          { 'data-tone': ending.bad ? 'bad' : ending.calm ? 'calm' : 'info' },
          icon(ending.icon),
          h('div', {}, h('p', { textContent: words }), turn.error?.message ? h('p.hint', { textContent: turn.error.message }) : null),
          again ? h('button.secondary.again', { onclick: () => context.again_(turn, ending.again === 'Continue') }, icon('refresh'), ending.again) : null,
        ),
      );
    }
    const facts = [duration(turn.durationMs), turn.usage?.totalTokens ? `${compact(turn.usage.totalTokens)} tokens` : ''].filter(Boolean).join(' · ');
    const answer = () =>
      turn.items
        .filter((item) => item.kind === 'message')
        .map((item) => item.parts.map((part) => part.text ?? '').join(''))
        .join('\n\n');
    parts.push(h('div.turn-facts', {}, h('span', { textContent: turn.stopReason === 'cancelled' && !turn.durationMs ? '' : facts }), turn.items.some((item) => item.kind === 'message') ? copyButton(answer, 'Copy answer') : null));
    this.foot.replaceChildren(...parts);
  }

  settle(settled) {
    this.el.classList.toggle('settled', settled);
  }
}

/** Roughly how tall an item will be, px. */
function guess(item) {
  if (item.kind === 'tool') return 38;
  if (item.kind === 'thought' || item.kind === 'raw' || item.kind === 'note') return 36;
  if (item.kind === 'plan') return 56 + 28 * (item.entries?.length ?? 3);
  let height = 0;
  for (const part of item.parts ?? []) height += part.text ? 24 * (part.text.length / 90 + (part.text.match(/\n/g)?.length ?? 0)) + 24 : 240;
  return height;
}
