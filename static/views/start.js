import { policyEntries } from '../actions.js'
import { nameOf } from '../list.js'
import { spell } from '../marks.js'
import { Composer, dropTarget } from './composer.js'
import { h, icon, iconButton, refill, say, setText, template, View, word } from './dom.js'
import { ago, plural } from './format.js'
import { choice, entry } from './menu.js'
import { pickerButton } from './settings.js'

const FIELDS = ['model', 'system']
const CARDS = 6 // recent projects

export class StartView extends View {
	constructor({ on, upload, choice, draft }) {
		super('start', { on, draft, agents: [], recent: [], keys: [] })
		this.choice = { permission: 'ask', project: null, worktree: false, others: [], ...choice }
		this.pickers = h('div.settings')
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
		this.setup.onclick = on.agents
		for (const idea of this.ideas.querySelectorAll('button'))
			idea.onclick = () => this.#create({ prompt: [{ type: 'text', text: idea.textContent }] })
		for (const task of this.tasks.querySelectorAll('button'))
			task.onclick = () => {
				this.composer.text = task.lastElementChild.textContent
				this.focus()
			}
		dropTarget(this.el, files => this.composer.add(files))
		this.#draw()
	}

	focus() {
		this.composer.focus()
	}

	chooseAgent(agent) {
		this.#choose({ agent, others: [] })
	}

	setAgents(agents) {
		this.agents = agents
		this.#draw()
	}

	setProjects(recent) {
		const shown = JSON.stringify(recent.slice(0, CARDS))
		if (shown === this.projectsShown) return
		this.projectsShown = shown
		this.recent = recent
		this.projects.hidden = !recent.length
		refill(this.cards, ...recent.slice(0, CARDS).map(one => this.#card(one)))
	}

	#card({ path, name, count, last }) {
		const { el, title, facts } = template('project-card')
		setText(title, name)
		setText(facts, `${plural(count, 'session')} · ${ago(last)}`)
		el.title = spell(path)
		el.ariaPressed = String(path === this.choice.project)
		el.dataset.path = path
		el.onclick = () => {
			this.#choose({ project: path === this.choice.project ? null : path })
			this.focus()
		}
		return el
	}

	#choose(changes) {
		Object.assign(this.choice, changes)
		this.on.save(this.choice)
		this.#draw()
	}

	#draw() {
		const usable = this.agents.filter(one => one.installed)
		if (usable.length)
			this.choice.agent = (
				usable.find(({ name }) => name === this.choice.agent) ??
				usable.find(one => one.default) ??
				usable[0]
			).name
		const { agent, others, project } = this.choice
		this.choice.others = others.filter(name => name !== agent && usable.some(one => one.name === name))
		const { permission, worktree } = this.choice
		this.#put(0, [agent, others, this.agents], () => this.#agents(usable))
		this.#put(1, [permission], () => this.#permissions())
		this.#put(2, [project, worktree], () => this.#project())
		const onlyDemo = agent === 'demo'
		this.ideas.hidden = !onlyDemo
		this.tasks.hidden = !agent || onlyDemo
		this.setup.hidden = !this.agents.length || usable.some(({ name }) => name !== 'demo')
		for (const card of this.cards.children) card.ariaPressed = String(card.dataset.path === project)
	}

	// An open menu must not vanish under the pointer.
	#put(index, shown, build) {
		const key = JSON.stringify(shown)
		const before = this.pickers.children[index]
		if (this.keys[index] === key || before?.querySelector(':popover-open')) return
		this.keys[index] = key
		if (before) before.replaceWith(build())
		else this.pickers.append(build())
	}

	#agents(usable) {
		const { agent, others } = this.choice
		const entries = () => [
			...usable.map(({ name, login_required: login }) =>
				choice(name, name === agent, () => this.#choose({ agent: name, others: [] }), login ? 'needs a login' : '')
			),
			usable.length > 1 && entry(say('ask'), 'columns', () => this.#several(usable)),
			entry('More agents…', 'spark', this.on.agents)
		]
		const more = others.length > 1 ? [others.length] : others
		const picker = pickerButton('Agent', [agent ?? 'default', ...more].join(' + '), () => entries().filter(Boolean))
		picker.firstChild.disabled = !this.agents.length
		return picker
	}

	async #several(usable) {
		const { agent, others } = this.choice
		const chosen = await this.on.several(
			usable.map(one => one.name),
			[agent, ...others]
		)
		if (chosen) this.#choose({ agent: chosen[0], others: chosen.slice(1) })
		this.focus()
	}

	#permissions() {
		const { permission } = this.choice
		return pickerButton('Permission', word('permission', permission) ?? permission, () =>
			policyEntries(permission, chosen => this.#choose({ permission: chosen }))
		)
	}

	#project() {
		const { project, worktree } = this.choice
		const name = project && nameOf(project)
		const button = h(
			`button.picker.project-picker${project ? '' : '.unset'}`,
			{
				label: `Project: ${name ? spell(name) + (worktree ? ' · worktree' : '') : 'New folder'}`,
				title: project ? spell(project) : say('the_folder'),
				onclick: async () => {
					const chosen = await this.on.folder({ project, worktree, recent: this.recent })
					if (chosen) this.#choose(chosen)
					this.focus()
				}
			},
			icon('folder'),
			h('span.ellipsis', { text: name ? name + (worktree ? ' · worktree' : '') : 'New folder' })
		)
		return h('span.menu-box', {}, button)
	}

	#clear() {
		this.composer.clear()
		this.draft.save(null, 'choices')
	}

	async #create(message) {
		if (this.inner.inert) return
		const { agent, permission, project, worktree, others } = this.choice
		/** @type {Props} */
		const options = { agent, permission }
		if (project && worktree) options.workspace = { git: { repository: project, worktree: true } }
		else if (project) options.cwd = project
		for (const name of FIELDS) if (this[name].value.trim()) options[name] = this[name].value.trim()
		setText(this.note, '')
		this.inner.inert = true
		const made = others.length
			? this.on.compare(options, [agent, ...others], message)
			: this.on.create(options, message)
		const error = await made.catch(failure => failure)
		this.inner.inert = false
		if (!error) return true
		setText(this.note, error.message)
		if (error.code === 'login_required') this.note.append(iconButton('quiet', 'key', 'Log in', this.on.agents))
		this.focus()
	}
}
