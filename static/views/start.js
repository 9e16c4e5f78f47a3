import { Composer, dropTarget } from './composer.js'
import { h, setText, View, word } from './dom.js'
import { pickerButton } from './settings.js'

const PERMISSIONS = ['ask', 'approve-reads', 'approve-all', 'deny-all']

const FIELDS = ['model', 'cwd', 'system']

export class StartView extends View {
	constructor({ on, upload, choice, draft }) {
		super('start', { on, draft })
		this.choice = { permission: 'ask', ...choice }
		this.pickers = h('div.settings', {}, h('span'), h('span'))
		this.composer = new Composer({
			placeholder: 'Describe a task',
			label: 'First message',
			upload,
			draft,
			on: { send: async message => (await this.#create(message)) && this.#clear() },
			controls: this.pickers
		})
		this.heading.after(this.composer.el)
		for (const name of FIELDS) {
			this[name].value = draft.read('choices')?.[name] ?? ''
			this[name].oninput = () =>
				draft.save(Object.fromEntries(FIELDS.map(field => [field, this[field].value])), 'choices')
		}
		this.menu.onclick = () => on.menu()
		for (const idea of this.ideas.querySelectorAll('button'))
			idea.onclick = () => this.#create({ prompt: [{ type: 'text', text: idea.textContent }] })
		dropTarget(this.el, files => this.composer.add(files))
		this.#draw('Agent')
		this.#draw(
			'Permission',
			PERMISSIONS.map(name => [name, word('permission', name), word('policy', name)]),
			[]
		)
	}

	focus() {
		this.composer.focus()
	}

	setAgents(agents) {
		const usable = agents.filter(one => one.installed)
		const missing = agents
			.filter(one => !one.installed)
			.map(({ name }) => name)
			.join(', ')
		this.choice.agent = (
			usable.find(({ name }) => name === this.choice.agent) ??
			usable.find(one => one.default) ??
			usable[0]
		)?.name
		this.#draw(
			'Agent',
			usable.map(({ name }) => [name, name]),
			missing ? [{ heading: `Not installed on the server: ${missing}` }] : []
		)
	}

	#draw(name, choices, note) {
		const key = name.toLowerCase()
		const value = this.choice[key] ?? 'default'
		const choose = one => {
			this.choice[key] = one
			this.on.save(this.choice)
			this.#draw(name, choices, note)
		}
		const entry = ([one, label, detail]) => ({ label, detail, checked: one === value, onselect: () => choose(one) })
		const picker = pickerButton(name, choices?.find(([one]) => one === value)?.[1] ?? value, () => [
			...choices.map(entry),
			...note
		])
		picker.firstChild.disabled = !choices
		this.pickers.children[key === 'agent' ? 0 : 1].replaceWith(picker)
		this.ideas.hidden = this.choice.agent !== 'demo'
	}

	#clear() {
		this.composer.clear()
		this.draft.save(null, 'choices')
	}

	async #create(message) {
		if (this.inner.inert) return
		const options = { ...this.choice }
		for (const name of FIELDS) if (this[name].value.trim()) options[name] = this[name].value.trim()
		setText(this.note, '')
		this.inner.inert = true
		const error = await this.on.create(options, message).catch(failure => failure)
		this.inner.inert = false
		if (!error) return true
		setText(this.note, error.message)
		this.focus()
	}
}
