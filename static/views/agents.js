// The agents of the server: what is installed, what to run, and how to log in
import { spell } from '../marks.js'
import { list, records, string } from '../normalise.js'
import { adminCall, adminForm } from './adminsign.js'
import { copyButton } from './code.js'
import { h, icon, say, setText } from './dom.js'
import { PanelPage, pill } from './panel.js'

const COMMAND = /^(npm|npx|pnpm|pip|pipx|uv|uvx|curl|brew|cargo|go|apt) /
const KNOWN = ['claude', 'codex', 'gemini', 'opencode', 'qwen', 'copilot'] // first of those to install

export class Panel extends PanelPage {
	constructor(app) {
		super(app, 'Agents')
		this.checkWords = h('span', { text: 'Check again' })
		this.check = h('button.secondary', { onclick: () => this.#check() }, icon('refresh'), this.checkWords)
		this.el.firstElementChild.append(this.check)
		this.note = h('p.hint', { role: 'status' })
		this.intro = h('p.lede', {
			text: say('these_agents')
		})
		this.grid = h('div.agent-cards')
		this.body.append(this.intro, this.note, this.grid)
		this.#draw()
	}

	update() {
		if (this.drawn !== JSON.stringify(this.app.agents)) this.#draw()
	}

	async #check() {
		this.check.disabled = true
		setText(this.checkWords, 'Checking…')
		const before = new Set(
			list(this.app.agents)
				.filter(one => one.installed)
				.map(one => one.name)
		)
		const agents = list(await this.app.loadAgents())
		const fresh = agents.filter(one => one.installed && !before.has(one.name)).map(one => one.name)
		const count = agents.filter(one => one.installed).length
		setText(this.note, fresh.length ? `New: ${fresh.join(', ')}` : `${count} of ${agents.length} agents are installed.`)
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
		this.grid.replaceChildren(
			...section(
				'Installed',
				known.filter(one => one.installed)
			),
			...section(
				'Can be installed',
				known.filter(one => !one.installed)
			)
		)
	}

	#card({ name, installed, default: first, install, auth_methods: methods, login_required: login }) {
		const state = login
			? pill('warn', 'Needs a login')
			: installed
				? pill('ok', first ? 'Ready · default' : 'Ready')
				: pill('', 'Not installed')
		return h(
			'article.agent-card',
			{ label: name, 'data-installed': String(Boolean(installed)) },
			h(
				'header',
				{},
				h('span.agent-mark', { 'aria-hidden': 'true', text: name.slice(0, 2) }),
				h('h3.ellipsis.grow', { text: name }),
				state
			),
			!installed && install && this.#install(install),
			installed && h('button.quiet', { onclick: () => this.#use(name) }, icon('plus'), say('new')),
			installed && (login || records(methods).length > 0) && this.#logins(name, records(methods), login)
		)
	}

	#install(text) {
		if (!COMMAND.test(text)) return h('p.hint', { text: text[0].toUpperCase() + text.slice(1) })
		return h(
			'div.command',
			{},
			h('code', { text, tabIndex: 0 }),
			copyButton(() => text, 'Copy')
		)
	}

	#use(name) {
		const { storage } = this.app
		storage.savePreferences({ start: { ...storage.preferences().start, agent: name, others: [] } })
		this.app.chooseAgent(name)
		this.app.go(null)
	}

	#logins(name, methods, required) {
		const box = h(
			'div.logins',
			{},
			methods.map(one => this.#login(name, one))
		)
		if (!methods.length) box.append(h('p.hint', { text: say('send_it') }))
		return h('details', { open: required ? '' : null }, h('summary', {}, icon('key'), 'Login', icon('chevron')), box)
	}

	#login(name, method) {
		const { id, name: title, description, type } = method
		const vars = [...list(method.vars).map(one => (typeof one === 'string' ? one : one?.name)), method.varName].filter(
			one => typeof one === 'string'
		)
		const words = string(title) || string(id)
		const how =
			type === 'env_var' || vars.length
				? h('p.hint', {
						text: `Set ${vars.join(', ') || 'its variable'} where the server runs, or in the app’s token.`
					})
				: type === 'terminal'
					? h('p.hint', { text: `Run its login on the server: ${[name, ...list(method.args)].join(' ')}` })
					: h(
							'button.secondary',
							{ onclick: event => this.#logIn(event.currentTarget, name, id, words) },
							icon('key'),
							`Log in: ${spell(words)}`
						)
		return h('div.login', {}, h('b', { text: words }), string(description) && h('p.hint', { text: description }), how)
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
			await adminCall(this.app, 'POST', `/admin/agents/${encodeURIComponent(name)}/authenticate`, { method_id: method })
			setText(this.note, `${name} is logged in.`)
			await this.app.loadAgents()
			this.#draw()
		} catch (error) {
			setText(this.note, `${name}: ${error.message}`)
		}
		button.disabled = false
	}
}
