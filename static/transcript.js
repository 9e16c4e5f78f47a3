/**
 * transcript.js: from log entries to what there is to show.
 *
 * `reduce(model, entry)` is called with each entry of a session's log, in order,
 * and brings the model up to date. The same entries always give the same model:
 * no clock, no randomness, no DOM. It changes the model in place, because a copy
 * per entry would make a long conversation quadratic; each entry costs O(1).
 * What changed is left in `model.dirty` (turns, items, or the model itself) for
 * a view to take and clear.
 *
 * The model:
 *   turns[]  {index, prompt, id, context, status, stopReason, durationMs, error, usage, items[]}
 *   items[]  {kind: 'message' | 'thought' | 'user'}  parts[], done
 *            {kind: 'tool'}     id, title, toolKind, status, content, locations, input, output,
 *                               terminal, permission
 *            {kind: 'plan'}     entries[] or text
 *            {kind: 'note'}     a small fact: mode changed, context compacted, a notice
 *            {kind: 'raw'}      anything this version does not know, as it came
 *   modes, models, configOptions, commands, usage, title, closed
 *   waiting  Map of request_id -> tool item that waits for the user's permission
 */

const MAX_RAW = 200; // of one run of unknown updates; beyond it they are only counted

export function createTranscript() {
  const model = {
    kind: 'session',
    head: 0,
    turns: [],
    running: new Set(), // indices of turns that have not ended
    waiting: new Map(),
    modes: null,
    models: null,
    configOptions: null,
    commands: null,
    usage: null,
    title: null,
    closed: null,
    dirty: new Set(),
  };
  // Look-ups that the view has no business with.
  hidden(model, 'byIndex', new Map());
  hidden(model, 'tools', new Map());
  hidden(model, 'requests', new Map());
  hidden(model, 'plans', new Map());
  hidden(model, 'keys', { next: 1 });
  hidden(model, 'seededAt', 0);
  return model;
}

/**
 * `ready` (and GET /sessions/{id}) knows the present settings; the log up to its
 * head knows only how they came about, and not all of it. So they win over it.
 */
export function seed(model, state) {
  model.seededAt = Math.max(model.seededAt, state.head ?? 0);
  if (state.modes) model.modes = state.modes;
  if (state.models) model.models = state.models;
  if (state.config_options) model.configOptions = state.config_options;
  if (state.commands) model.commands = state.commands;
  if (state.usage) model.usage = state.usage;
  model.dirty.add(model);
}

export function reduce(model, entry) {
  model.head = entry.seq;
  switch (entry.type) {
    case 'turn_start':
      startTurn(model, entry);
      break;
    case 'event':
      event(model, entry);
      break;
    case 'permission_request':
      requestPermission(model, entry);
      break;
    case 'permission_resolved':
      resolvePermission(model, entry);
      break;
    case 'turn_end':
      endTurn(model, entry);
      break;
    case 'session_closed':
      model.closed = { reason: entry.reason, ts: entry.ts };
      model.dirty.add(model);
      break;
    default:
      addRaw(model, turnOf(model, entry), entry.type, entry, entry.ts);
  }
  return model;
}

// ---- turns ----------------------------------------------------------------

function startTurn(model, entry) {
  const turn = turnOf(model, entry);
  turn.prompt = Array.isArray(entry.prompt) ? entry.prompt : [{ type: 'text', text: String(entry.prompt ?? '') }];
  turn.id = entry.id ?? null;
  turn.context = entry.context ?? 'kept';
  turn.startedAt = entry.ts;
  turn.status = 'running';
  model.running.add(turn.index);
  model.dirty.add(model);
}

function endTurn(model, entry) {
  const turn = turnOf(model, entry);
  closeText(model, turn, entry.ts);
  turn.status = 'ended';
  turn.endedAt = entry.ts;
  turn.stopReason = entry.stop_reason;
  turn.durationMs = entry.duration_ms;
  turn.error = entry.error ?? null;
  for (const tool of turn.open) {
    // It will hear of nothing any more: not running, whatever it said last.
    tool.abandoned = true;
    model.dirty.add(tool);
  }
  turn.open.clear();
  model.running.delete(turn.index);
  model.dirty.add(turn);
  model.dirty.add(model);
}

/** The turn an entry belongs to; what comes outside of any turn gets one without a prompt. */
function turnOf(model, entry) {
  const index = entry.turn_index ?? 0;
  let turn = model.byIndex.get(index);
  if (!turn) {
    turn = {
      key: key(model, 't'),
      kind: 'turn',
      index,
      prompt: null,
      id: null,
      context: 'kept',
      status: 'ended',
      startedAt: entry.ts,
      endedAt: null,
      stopReason: null,
      durationMs: null,
      error: null,
      usage: null,
      plan: null,
      items: [],
    };
    hidden(turn, 'open', new Set()); // tool calls that still run
    hidden(turn, 'text', null); //      the message or thought that still grows
    model.byIndex.set(index, turn);
    model.turns.push(turn);
  }
  model.dirty.add(turn);
  return turn;
}

function add(model, turn, kind, ts, fields) {
  closeText(model, turn, ts);
  const item = { key: key(model, 'i'), kind, turnIndex: turn.index, startedAt: ts, ...fields };
  turn.items.push(item);
  model.dirty.add(turn);
  model.dirty.add(item);
  return item;
}

// ---- the agent's own messages ---------------------------------------------

function event(model, entry) {
  const message = entry.event ?? {};
  if (message.method === 'session/update') {
    const update = message.params?.update ?? {};
    const handler = UPDATES[update.sessionUpdate];
    if (handler) handler(model, update, entry);
    else addRaw(model, turnOf(model, entry), update.sessionUpdate ?? 'session/update', update, entry.ts);
  } else if (message.method) {
    addRaw(model, turnOf(model, entry), message.method, message.params, entry.ts);
  } else {
    // The response that ends the turn; turn_end, which follows, says the rest.
    const usage = message.result?.usage;
    if (usage) turnOf(model, entry).usage = usage;
  }
}

const UPDATES = {
  agent_message_chunk: (model, update, entry) => addText(model, 'message', update, entry),
  agent_thought_chunk: (model, update, entry) => addText(model, 'thought', update, entry),

  user_message_chunk(model, update, entry) {
    // Some agents echo the prompt: it is on the screen already.
    const turn = turnOf(model, entry);
    if (update.content?.type === 'text' && turn.prompt?.some((block) => block.text?.includes(update.content.text))) return;
    addText(model, 'user', update, entry);
  },

  tool_call: (model, update, entry) => mergeTool(model, turnOf(model, entry), update, entry.ts, true),
  tool_call_update: (model, update, entry) => mergeTool(model, turnOf(model, entry), update, entry.ts, false),

  plan: (model, update, entry) => setPlan(model, entry, 'plan', { entries: list(update.entries) }),
  plan_update(model, update, entry) {
    const plan = update.plan ?? {};
    const fields = plan.type === 'items' ? { entries: list(plan.entries) } : { entries: [], text: plan.content ?? plan.uri ?? '' };
    setPlan(model, entry, plan.planId ?? plan.id ?? 'plan', fields);
  },
  plan_removed(model, update) {
    const item = model.plans.get(update.planId);
    if (!item) return;
    item.removed = true;
    model.dirty.add(item);
  },

  available_commands_update(model, update, entry) {
    setting(model, entry, 'commands', list(update.availableCommands));
  },
  current_mode_update(model, update, entry) {
    const modes = model.modes ?? { currentModeId: null, availableModes: [] };
    if (entry.seq > model.seededAt && modes.currentModeId && modes.currentModeId !== update.currentModeId) {
      const mode = modes.availableModes?.find((one) => one.id === update.currentModeId);
      add(model, turnOf(model, entry), 'note', entry.ts, { note: 'mode', title: mode?.name ?? update.currentModeId });
    }
    setting(model, entry, 'modes', { ...modes, currentModeId: update.currentModeId });
  },
  config_option_update(model, update, entry) {
    setting(model, entry, 'configOptions', list(update.configOptions));
  },

  session_info_update(model, update) {
    if (update.title !== undefined) model.title = update.title;
    model.dirty.add(model);
  },
  usage_update(model, update) {
    model.usage = { used: update.used, size: update.size, cost: update.cost ?? null };
    model.dirty.add(model);
  },

  notice(model, update, entry) {
    const { severity, title, description } = update;
    add(model, turnOf(model, entry), 'note', entry.ts, { note: severity ?? 'info', title, text: description ?? '' });
  },
  compaction_update(model, update, entry) {
    const turn = turnOf(model, entry);
    let item = turn.items.findLast((one) => one.note === 'compaction' && one.id === update.compactionId);
    item ??= add(model, turn, 'note', entry.ts, { note: 'compaction', id: update.compactionId, title: '', text: '' });
    item.title = update.status;
    item.text = update.error ?? (update.summary ? textOf(update.summary) : item.text);
    model.dirty.add(item);
  },
  compaction_summary_chunk(model, update, entry) {
    const item = turnOf(model, entry).items.findLast((one) => one.note === 'compaction' && one.id === update.compactionId);
    if (!item) return;
    item.text += update.content?.text ?? '';
    model.dirty.add(item);
  },
};

function setting(model, entry, name, value) {
  if (entry.seq <= model.seededAt && model[name]) return;
  model[name] = value;
  model.dirty.add(model);
}

function addText(model, kind, update, entry) {
  const turn = turnOf(model, entry);
  const content = update.content ?? {};
  let item = turn.text;
  if (!item || item.kind !== kind || (update.messageId ?? null) !== item.messageId) {
    item = add(model, turn, kind, entry.ts, { messageId: update.messageId ?? null, parts: [], done: false, endedAt: null });
    turn.text = item;
  }
  const part = item.parts[item.parts.length - 1];
  if (content.type === 'text') {
    if (part?.type === 'text') part.text += content.text ?? '';
    else item.parts.push({ type: 'text', text: content.text ?? '' });
  } else {
    item.parts.push(content);
  }
  item.endedAt = entry.ts;
  if (turn.status === 'ended' && turn.stopReason) item.done = true; // a late one: nothing will end it
  model.dirty.add(item);
}

function closeText(model, turn, ts) {
  const item = turn.text;
  if (!item) return;
  item.done = true;
  item.endedAt = ts;
  turn.text = null;
  model.dirty.add(item);
}

function setPlan(model, entry, id, fields) {
  const turn = turnOf(model, entry);
  // One plan a turn that updates in place; a new turn gets its own.
  let item = model.plans.get(id);
  if (!item || item.turnIndex !== turn.index) {
    item = add(model, turn, 'plan', entry.ts, { id, text: '' });
    model.plans.set(id, item);
  }
  Object.assign(item, fields, { removed: false });
  turn.plan = item;
  model.dirty.add(item);
  model.dirty.add(model);
}

function addRaw(model, turn, name, data, ts) {
  const last = turn.items[turn.items.length - 1];
  if (last?.kind === 'raw' && last.name === name) {
    last.count += 1;
    if (last.data.length < MAX_RAW) last.data.push(data);
    model.dirty.add(last);
    return;
  }
  add(model, turn, 'raw', ts, { name, count: 1, data: [data] });
}

// ---- tool calls and permissions -------------------------------------------

function mergeTool(model, turn, update, ts, fresh) {
  const id = update.toolCallId ?? '';
  let tool = model.tools.get(id);
  // An id that a later turn announces again is another call.
  if (!tool || (fresh && tool.turnIndex !== turn.index)) {
    tool = add(model, turn, 'tool', ts, {
      id,
      title: '',
      toolKind: 'other',
      status: 'pending',
      content: [],
      locations: [],
      input: undefined,
      output: undefined,
      terminal: null,
      permission: null,
      parent: null,
      abandoned: false,
      endedAt: null,
    });
    model.tools.set(id, tool);
  }
  // Absent and null mean unchanged; lists are replaced whole.
  if (update.title != null) tool.title = update.title;
  if (update.kind != null) tool.toolKind = update.kind;
  if (update.content != null) tool.content = list(update.content);
  if (update.locations != null) tool.locations = list(update.locations);
  if (update.rawInput != null) tool.input = update.rawInput;
  if (update.rawOutput != null) tool.output = update.rawOutput;
  if (update.status != null) {
    tool.status = update.status;
    const ended = update.status === 'completed' || update.status === 'failed';
    tool.endedAt = ended ? ts : null;
    if (ended) turn.open.delete(tool);
  }
  if (tool.endedAt == null) {
    if (turn.status === 'running') turn.open.add(tool);
    else tool.abandoned = true;
  }
  const meta = update._meta;
  if (meta) {
    // Agents without a client-side terminal stream its output here.
    if (meta.terminal_info) tool.terminal = { output: '', exit: null };
    if (meta.terminal_output) (tool.terminal ??= { output: '', exit: null }).output += meta.terminal_output.data ?? '';
    if (meta.terminal_exit) (tool.terminal ??= { output: '', exit: null }).exit = meta.terminal_exit.exit_code ?? null;
    if (meta.claudeCode?.parentToolUseId) tool.parent = meta.claudeCode.parentToolUseId;
  }
  model.dirty.add(tool);
  return tool;
}

function requestPermission(model, entry) {
  const turn = turnOf(model, entry);
  const request = entry.request ?? {};
  // The request lives on the tool call it is about, and brings it if it is new.
  const call = { ...(request.toolCall ?? {}) };
  call.toolCallId ??= `permission:${entry.request_id}`;
  const tool = mergeTool(model, turn, call, entry.ts, false);
  tool.permission = {
    requestId: entry.request_id,
    options: list(request.options),
    expiresAt: entry.expires_at ?? null,
    outcome: null,
    by: null,
  };
  model.requests.set(entry.request_id, tool);
  model.waiting.set(entry.request_id, tool);
  model.dirty.add(model);
}

function resolvePermission(model, entry) {
  const tool = model.requests.get(entry.request_id);
  model.requests.delete(entry.request_id);
  model.waiting.delete(entry.request_id);
  model.dirty.add(model);
  if (tool?.permission?.requestId !== entry.request_id) return;
  tool.permission.outcome = entry.outcome ?? {};
  tool.permission.by = entry.by;
  model.dirty.add(tool);
}

// ---- helpers that views share ----------------------------------------------

/** The plain text of content blocks. */
export function textOf(blocks) {
  return list(blocks)
    .map((block) => block?.text ?? '')
    .join('');
}

const ATTACHED = '[Attached files]\n';

/**
 * A prompt as its author saw it: the server puts the paths of uploaded files
 * before the text, one a line; they are shown as files again.
 */
export function promptParts(blocks) {
  const parts = { text: '', files: [], others: [] };
  for (const block of list(blocks)) {
    if (block?.type !== 'text') {
      parts.others.push(block);
      continue;
    }
    let text = block.text ?? '';
    if (!parts.text && text.startsWith(ATTACHED)) {
      const lines = text.slice(ATTACHED.length).split('\n');
      const folder = (path) => path.slice(0, path.lastIndexOf('/') + 1);
      const first = lines[0];
      // All uploads of a session lie in one folder; a prompt may begin with "/" too.
      while (lines.length && lines[0].startsWith('/') && folder(lines[0]) === folder(first)) parts.files.push(lines.shift());
      text = lines.join('\n');
    }
    parts.text += text;
  }
  return parts;
}

function list(value) {
  return Array.isArray(value) ? value : [];
}

function key(model, prefix) {
  return `${prefix}${model.keys.next++}`;
}

/** Bookkeeping that is no part of what a golden file or a view looks at. */
function hidden(object, name, value) {
  Object.defineProperty(object, name, { value, writable: true, enumerable: false });
}
