// The agents of the server: what is installed, what to run, and how to log in
import { spell } from '../marks.js'
import { list, records, string } from '../normalise.js'
import { adminForm } from './adminsign.js'
import { copyButton } from './code.js'
import { filled, h, hint, iconButton, refill, say, setText, template } from './dom.js'
import { PanelPage, pill } from './panel.js'

const COMMAND = /^(npm|npx|pnpm|pip|pipx|uv|uvx|curl|brew|cargo|go|apt) /
const KNOWN = ['claude', 'codex', 'gemini', 'opencode', 'qwen', 'copilot'] // first of those to install

export class AgentsPanel extends PanelPage {
	constructor(app) {
		super(app, 'Agents')
		this.checkWords = h('span', { text: 'Check again' })
		this.check = iconButton('secondary', 'refresh', this.checkWords, () => this.#check())
		this.bar.append(this.check)
		const { el, note, grid } = template('agents')
		Object.assign(this, { note, grid })
		this.body.append(...el.children)
		this.#draw()
	}

	/** @override */
	focus() {
		super.focus()
		this.app.loadAgents()
	}

	update() {
		if (this.drawn !== JSON.stringify(this.app.agents)) this.#draw()
	}

	async #check() {
		this.check.disabled = true
		setText(this.checkWords, 'Checking…')
		const installed = agents => list(agents).filter(one => one.installed)
		const before = new Set(installed(this.app.agents).map(one => one.name))
		const agents = list(await this.app.loadAgents())
		const names = installed(agents).map(one => one.name)
		const fresh = names.filter(name => !before.has(name))
		setText(
			this.note,
			fresh.length ? `New: ${fresh.join(', ')}` : `${names.length} of ${agents.length} agents are installed.`
		)
		this.check.disabled = false
		setText(this.checkWords, 'Check again')
		this.#draw()
	}

	#draw() {
		const agents = records(this.app.agents)
		this.drawn = JSON.stringify(this.app.agents)
		const rank = one =>
			one.login_required ? 0 : one.default ? 1 : one.installed ? 2 : KNOWN.includes(one.name) ? 3 : 4
		const known = [...agents].sort((a, b) => rank(a) - rank(b))
		const section = (title, some) =>
			some.length ? [h('h2', { text: title }), ...some.map(one => this.#card(one))] : []
		const missing = known.filter(one => !one.installed)
		const ready = known.filter(one => one.installed)
		refill(this.grid, ...section('Installed', ready), ...section('Can be installed', missing))
	}

	#card({ name, installed, default: first, install, auth_methods: methods, login_required: required }) {
		const isCommand = COMMAND.test(install)
		const how = isCommand || !install ? '' : install[0].toUpperCase() + install.slice(1)
		const card = filled('agent', { title: name, mark: name.slice(0, 2), how, install: install ?? '' })
		const { el, title, use, login, logins, command } = card
		el.ariaLabel = spell(name)
		el.dataset.installed = String(Boolean(installed))
		title.after(
			required
				? pill('warn', 'Needs a login')
				: installed
					? pill('ok', first ? 'Ready · default' : 'Ready')
					: pill('', 'Not installed')
		)
		use.hidden = !installed
		use.onclick = () => this.#use(name)
		card.how.hidden = installed || !how
		command.hidden = installed || !isCommand
		command.append(copyButton(() => install))
		const ways = records(methods)
		login.hidden = !installed || !(required || ways.length)
		login.open = required
		logins.append(...ways.map(one => this.#login(name, one)), ways.length ? '' : hint(say('send_it')))
		return el
	}

	#use(name) {
		const { storage } = this.app
		storage.savePreferences({ start: { ...storage.preferences().start, agent: name, others: [] } })
		this.app.chooseAgent(name)
		this.app.go(null)
	}

	#login(name, { id, name: title, description, type, vars: given, varName, args }) {
		const vars = [...list(given).map(one => one?.name ?? one), varName].filter(one => typeof one === 'string')
		const words = string(title) || string(id)
		const byVariable = type === 'env_var' || vars.length > 0
		const how = byVariable
			? `Set ${vars.join(', ') || 'its variable'} ${say('where')}`
			: type === 'terminal'
				? `${say('run_login')} ${[name, ...list(args)].join(' ')}`
				: ''
		const texts = { title: words, about: string(description), how, words: `Log in: ${spell(words)}` }
		const { el, button } = filled('login', texts)
		button.hidden = Boolean(how)
		button.onclick = () => this.#logIn(button, name, id, words)
		return el
	}

	async #logIn(button, name, method, words) {
		if (!this.app.adminToken) {
			const box = button.closest('.login')
			const form = adminForm(this.app, () => {
				form.el.remove()
				this.#logIn(button, name, method, words)
			})
			box.querySelector('.admin-form')?.remove()
			box.append(form.el)
			return form.focus()
		}
		button.disabled = true
		setText(this.note, `Logging in to ${name}…`)
		try {
			await this.app.callAdmin('POST', `/admin/agents/${encodeURIComponent(name)}/authenticate`, { method_id: method })
			setText(this.note, `${name} is logged in.`)
			await this.app.loadAgents()
			this.#draw()
		} catch (error) {
			setText(this.note, `${name}: ${error.message}`)
		}
		button.disabled = false
	}
}
