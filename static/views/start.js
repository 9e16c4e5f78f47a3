/** start.js: a new session begins with what one wants, and a few choices below it. */
import { h, setText } from './dom.js';
import { icon, mark } from './icons.js';
import { menuButton } from './menu.js';
import { Composer, dropTarget } from './composer.js';

const PERMISSIONS = [
  { value: 'ask', name: 'Ask me', description: 'The agent asks before it acts' },
  { value: 'approve-reads', name: 'Allow reading', description: 'Reads and searches freely, nothing else' },
  { value: 'approve-all', name: 'Allow everything', description: 'Works on its own' },
  { value: 'deny-all', name: 'Deny everything', description: 'Only talks' },
];

export class StartView {
  /** `on`: create(options, message) -> promise; `preferences`, `save` */
  constructor({ on, upload, preferences, save, openMenu }) {
    this.on = on;
    this.save = save;
    this.agents = [];
    this.choice = { agent: null, permission: 'ask', ...preferences };
    this.agentWords = h('span');
    const agentButton = h('button.picker', { title: 'Agent' }, this.agentWords, icon('chevron'));
    this.permissionWords = h('span');
    const permissionButton = h('button.picker', { title: 'Permission' }, icon('shield'), this.permissionWords, icon('chevron'));
    menuButton(agentButton, () => this.#agentEntries(), { label: 'Agent' });
    menuButton(permissionButton, () => this.#permissionEntries(), { label: 'Permission' });
    this.agentButton = agentButton;
    this.permissionButton = permissionButton;
    this.composer = new Composer({ placeholder: 'What should be done?', label: 'First message of a new session', upload, on: { send: (message) => this.#create(message) }, controls: [h('span', {}, agentButton), h('span', {}, permissionButton)] });
    this.model = field('Model', 'the agent’s default');
    this.cwd = field('Working folder', 'a fresh one');
    this.system = h('textarea', { rows: 3, id: 'start-system', placeholder: 'none' });
    this.note = h('p.form-note', { role: 'alert' });
    const more = h('details.start-more', {}, h('summary', {}, icon('chevron'), 'More choices'), h('div.fields', {}, this.model.el, this.cwd.el, h('div.field.full', {}, h('label', { for: 'start-system', textContent: 'Instructions for the agent' }), this.system)));
    this.el = h(
      'section.start',
      { 'aria-labelledby': 'start-title' },
      h('header.bar', {}, h('button.icon-button.only-narrow', { 'aria-label': 'Show the sessions', onclick: openMenu }, icon('menu'))),
      h('div.start-inner', {}, mark(), h('h1', { id: 'start-title', textContent: 'What should be done?' }), this.composer.el, this.note, more),
    );
    dropTarget(this.el, (files) => this.composer.add(files));
    this.#words();
  }

  setAgents(agents) {
    this.agents = agents;
    const known = agents.find((agent) => agent.name === this.choice.agent && agent.installed);
    this.choice.agent = (known ?? agents.find((agent) => agent.default) ?? agents.find((agent) => agent.installed))?.name ?? null;
    this.#words();
  }

  focus() {
    this.composer.focus();
  }

  #words() {
    setText(this.agentWords, this.choice.agent ?? 'Agent');
    this.agentButton.setAttribute('aria-label', `Agent: ${this.choice.agent ?? 'default'}`);
    const permission = PERMISSIONS.find((one) => one.value === this.choice.permission) ?? PERMISSIONS[0];
    setText(this.permissionWords, permission.name);
    this.permissionButton.setAttribute('aria-label', `Permission: ${permission.name}`);
  }

  #choose(change) {
    Object.assign(this.choice, change);
    this.save(change);
    this.#words();
  }

  #agentEntries() {
    const entry = ({ name, installed }) => ({ label: name, detail: installed ? '' : 'not installed', disabled: !installed, checked: name === this.choice.agent, onselect: () => this.#choose({ agent: name }) });
    const installed = this.agents.filter((agent) => agent.installed);
    const missing = this.agents.filter((agent) => !agent.installed);
    return [{ heading: 'Agent' }, ...installed.map(entry), ...(missing.length ? [{ heading: 'Not installed on the server' }, ...missing.map(entry)] : [])];
  }

  #permissionEntries() {
    return [{ heading: 'Permission' }, ...PERMISSIONS.map(({ value, name, description }) => ({ label: name, detail: description, checked: value === this.choice.permission, onselect: () => this.#choose({ permission: value }) }))];
  }

  async #create(message) {
    const options = { permission: this.choice.permission };
    if (this.choice.agent) options.agent = this.choice.agent;
    if (this.model.value) options.model = this.model.value;
    if (this.cwd.value) options.cwd = this.cwd.value;
    if (this.system.value.trim()) options.system = this.system.value.trim();
    setText(this.note, '');
    this.composer.disabled = true;
    try {
      await this.on.create(options, message);
    } catch (error) {
      setText(this.note, error.message);
      this.composer.text = message.text; // nothing of what was written is lost
    } finally {
      this.composer.disabled = false;
    }
  }
}

function field(label, placeholder) {
  const id = `start-${label.toLowerCase().replace(/\W/g, '-')}`;
  const input = h('input', { id, placeholder, autocomplete: 'off', spellcheck: 'false', autocapitalize: 'off' });
  return {
    el: h('div.field', {}, h('label', { for: id, textContent: label }), input),
    get value() {
      return input.value.trim();
    },
  };
}
