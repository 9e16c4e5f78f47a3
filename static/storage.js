/**
 * storage.js: what the browser remembers for us. The token stays in this tab
 * unless asked otherwise; everything else is convenience, and may be refused.
 */
const TOKEN = 'clawdforge:token';
const PREFERENCES = 'clawdforge:preferences';

export const storage = {
  token() {
    return read(sessionStorage, TOKEN) ?? read(localStorage, TOKEN);
  },
  saveToken(token, keep) {
    this.forgetToken();
    write(keep ? localStorage : sessionStorage, TOKEN, token);
  },
  forgetToken() {
    remove(sessionStorage, TOKEN);
    remove(localStorage, TOKEN);
  },

  preferences() {
    return json(read(localStorage, PREFERENCES)) ?? {};
  },
  savePreferences(changes) {
    write(localStorage, PREFERENCES, JSON.stringify({ ...this.preferences(), ...changes }));
  },

  draft(id) {
    return read(sessionStorage, `clawdforge:draft:${id}`) ?? '';
  },
  saveDraft(id, text) {
    if (text) write(sessionStorage, `clawdforge:draft:${id}`, text);
    else remove(sessionStorage, `clawdforge:draft:${id}`);
  },

  outbox(id) {
    return json(read(sessionStorage, `clawdforge:outbox:${id}`)) ?? [];
  },
  saveOutbox(id, prompts) {
    if (prompts.length) write(sessionStorage, `clawdforge:outbox:${id}`, JSON.stringify(prompts));
    else remove(sessionStorage, `clawdforge:outbox:${id}`);
  },
};

function json(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

// Storage may be off, full or forbidden: the page works without it.
function read(area, key) {
  try {
    return area.getItem(key);
  } catch {
    return null;
  }
}
function write(area, key, value) {
  try {
    area.setItem(key, value);
  } catch {
    // full (a large image in the outbox) or forbidden
  }
}
function remove(area, key) {
  try {
    area.removeItem(key);
  } catch {
    // forbidden
  }
}
