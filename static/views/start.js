/** A new session: what one wants, and a few choices. */
import { Composer, dropTarget } from './composer.js';
import { h, setText, template } from './dom.js';
import { pickerButton } from './settings.js';

const PERMISSIONS = {
	'ask': ['Ask me', 'The agent asks before it acts'],
	'approve-reads': ['Allow reading', 'Reads and searches freely, nothing else'],
	'approve-all': ['Allow everything', 'Works on its own'],
	'deny-all': ['Deny everything', 'Only talks'],
};

export class StartView {
	/** `on`: create(options, message), save(choice), menu(); `choice`: what was chosen last time */
	constructor({ on, upload, choice }) {
		Object.assign(this, template('start'), { on });
		this.agents = [];
		this.choice = { permission: 'ask', ...choice };
		this.pickers = h('div.settings');
		this.composer = new Composer({ placeholder: 'Describe a task', label: 'First message', upload, on: { send: (message) => this.#create(message) }, controls: this.pickers });
		this.heading.after(this.composer.el);
		this.menu.onclick = on.menu;
		for (const idea of this.ideas.querySelectorAll('button')) idea.onclick = () => this.#create({ prompt: [{ type: 'text', text: idea.textContent }] });
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
