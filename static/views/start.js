/** A new session begins with what one wants, and a few choices below it. */
import { Composer, dropTarget } from './composer.js';
import { h, icon, iconButton, setText } from './dom.js';
import { pickerButton } from './settings.js';

const PERMISSIONS = {
	'ask': ['Ask me', 'The agent asks before it acts'],
	'approve-reads': ['Allow reading', 'Reads and searches freely, nothing else'],
	'approve-all': ['Allow everything', 'Works on its own'],
	'deny-all': ['Deny everything', 'Only talks'],
};

export class StartView {
	static #IDEAS = ['help', 'plan', 'diff', 'code'];

	/** `on`: create(options, message), save(choice), menu(); `choice`: what was chosen last time */
	constructor({ on, upload, choice }) {
		this.on = on;
		this.agents = [];
		this.choice = { permission: 'ask', ...choice };
		this.pickers = h('div.settings');
		this.composer = new Composer({ placeholder: 'Describe a task', label: 'First message', upload, on: { send: (message) => this.#create(message) }, controls: this.pickers });
		this.model = h('input', { placeholder: 'the agent’s default' });
		this.cwd = h('input', { placeholder: 'a fresh one', spellcheck: 'false' });
		this.system = h('textarea', { placeholder: 'none', rows: 3 });
		this.note = h('p.form-note', { role: 'alert' });
		const ideas = StartView.#IDEAS.map((text) => h('button.secondary', { text, onclick: () => this.#create({ prompt: [{ type: 'text', text }] }) }));
		this.ideas = h('div.chips.ideas', {}, h('p.hint', { text: 'The demo agent needs no account. See it:' }), ideas);
		const field = (label, input) => h('label', {}, label, input);
		const more = h('details.start-more', {}, h('summary', {}, icon('chevron'), 'More choices'), h('div.fields', {}, field('Model', this.model), field('Working folder', this.cwd), field('Instructions for the agent', this.system)));
		this.el = h(
			'section.start',
			{ 'aria-labelledby': 'start-title' },
			h('header.bar', {}, iconButton('menu', 'Show the sessions', on.menu, 'icon-button.only-narrow')),
			h('div.start-inner', {}, h('h1', { id: 'start-title' }, icon('mark'), 'What should be done?'), this.composer.el, this.note, this.ideas, more),
		);
		dropTarget(this.el, (files) => this.composer.add(files));
		this.#draw();
	}

	focus() {
		this.composer.focus();
	}

	setAgents(agents) {
		const usable = agents.filter(({ installed }) => installed);
		this.agents = usable.map(({ name }) => name);
		this.missing = agents.filter(({ installed }) => !installed).map(({ name }) => name).join(', ');
		this.choice.agent = (usable.find(({ name }) => name === this.choice.agent) ?? usable.find((agent) => agent.default) ?? usable[0])?.name;
		this.#draw();
	}

	#draw() {
		const { agent = 'default', permission } = this.choice;
		const pick = (change) => () => {
			Object.assign(this.choice, change);
			this.on.save(this.choice);
			this.#draw();
		};
		const agents = () => [...this.agents.map((name) => ({ label: name, checked: name === agent, onselect: pick({ agent: name }) })), this.missing && { heading: `Not installed on the server: ${this.missing}` }].filter(Boolean);
		const permissions = () => Object.entries(PERMISSIONS).map(([value, [label, detail]]) => ({ label, detail, checked: value === permission, onselect: pick({ permission: value }) }));
		this.ideas.hidden = agent !== 'demo';
		this.pickers.replaceChildren(pickerButton('Agent', agent, agents), pickerButton('Permission', PERMISSIONS[permission]?.[0] ?? permission, permissions));
	}

	async #create(message) {
		const options = { ...this.choice };
		for (const name of ['model', 'cwd', 'system']) if (this[name].value.trim()) options[name] = this[name].value.trim();
		setText(this.note, '');
		try {
			await this.on.create(options, message);
		} catch (error) {
			setText(this.note, error.message);
			this.composer.text = message.prompt[0]?.text ?? '';
		}
	}
}
