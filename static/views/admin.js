// The operator's page: tokens, usage and the audit, with the admin token
import { list, record, records } from '../normalise.js'
import { adminCall, adminForm } from './adminsign.js'
import { copyButton } from './code.js'
import { ask, toast } from './dialogs.js'
import { h, icon, say, setText, template } from './dom.js'
import { ago, compact, money } from './format.js'
import { PanelPage, pill } from './panel.js'

const TABS = { tokens: 'Tokens', usage: 'Usage', audit: 'Audit' }
const GROUPS = { app: 'App', day: 'Day', agent: 'Agent', model: 'Model' }
const PAGE = 200

export class Panel extends PanelPage {
	constructor(app) {
		super(app, 'Administration')
		this.leave = h('button.quiet', { hidden: '', onclick: () => this.#forget() }, icon('leave'), 'Forget token')
		this.el.firstElementChild.append(this.leave)
		this.tab = 'tokens'
		this.#draw()
	}

	/** @override */
	focus() {
		;(this.body.querySelector('input') ?? this.heading).focus()
	}

	#forget() {
		this.app.adminToken = null
		this.#draw()
		this.focus()
	}

	#draw() {
		const { app } = this
		this.leave.hidden = !app.adminToken
		if (!app.adminToken) {
			const form = adminForm(app, () => this.#draw())
			return this.body.replaceChildren(h('p.lede', { text: say('apps_their') }), form.el)
		}
		this.content = h('div.admin-content', { id: 'admin-content', role: 'tabpanel', tabIndex: 0 })
		this.tabs = Object.entries(TABS).map(([name, text]) =>
			h('button.tab', {
				role: 'tab',
				'aria-controls': 'admin-content',
				onclick: () => this.#show(name),
				'data-tab': name,
				text
			})
		)
		const bar = h(
			'div.tabs',
			{ role: 'tablist', label: 'Administration', onkeydown: event => this.#arrow(event) },
			this.tabs
		)
		this.body.replaceChildren(bar, this.content)
		this.#show(this.tab)
	}

	#arrow(event) {
		const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key]
		const at = this.tabs.indexOf(document.activeElement)
		if (!step || at < 0) return
		event.preventDefault()
		const next = this.tabs[(at + step + this.tabs.length) % this.tabs.length]
		next.focus()
		next.click()
	}

	async #show(name) {
		this.tab = name
		for (const one of this.tabs) {
			one.ariaSelected = String(one.dataset.tab === name)
			one.tabIndex = one.dataset.tab === name ? 0 : -1
		}
		this.content.ariaLabel = TABS[name]
		this.content.ariaBusy = 'true'
		try {
			const nodes = await { tokens: () => this.#tokens(), usage: () => this.#usage(), audit: () => this.#audit() }[
				name
			]()
			if (this.tab === name) this.content.replaceChildren(...nodes)
		} catch (error) {
			if (!this.app.adminToken) return this.#draw()
			this.content.replaceChildren(h('p.form-note', { role: 'alert', text: error.message }))
		}
		this.content.ariaBusy = 'false'
	}

	async #tokens() {
		const { tokens } = await adminCall(this.app, 'GET', '/admin/tokens')
		return [
			this.#newToken(),
			table(
				['App', 'Scopes', 'Limits and budget', 'Created', ''],
				records(tokens).map(one => this.#token(one))
			)
		]
	}

	#token({ name, scopes, limits, budget, spent, ip_cidrs: networks, env, created_at: at }) {
		const parts = [
			...pairs(limits),
			...pairs(budget),
			...pairs(spent).map(one => `spent: ${one}`),
			...(list(networks).length ? [`only from ${list(networks).join(', ')}`] : []),
			...(list(env).length ? [`env: ${list(env).join(', ')}`] : [])
		]
		return [
			h('b', { text: name }),
			h('span.chips', {}, scopes ? list(scopes).map(one => pill('', one)) : pill('', 'all')),
			h('span.hint', { text: parts.join(' · ') || 'none' }),
			h('span', { text: ago(at) }),
			h(
				'span.chips',
				{},
				h(
					'button.quiet',
					{ label: `Change the budget of ${name}`, onclick: () => this.#budget(name, record(budget)) },
					icon('pencil'),
					'Budget'
				),
				h(
					'button.quiet.reject',
					{ label: `Revoke the token of ${name}`, onclick: () => this.#revoke(name) },
					icon('trash'),
					'Revoke'
				)
			)
		]
	}

	async #budget(name, budget) {
		const title = `Budget of ${name} per day in US dollars (0: none)`
		const given = await ask({ title, input: String(budget.usd_per_day ?? ''), action: 'Change' })
		if (given === null) return
		const { usd_per_day: _, ...others } = budget
		const amount = Number(given)
		if (!(amount >= 0)) return toast(say('a_budget'))
		const changed = amount > 0 ? { ...others, usd_per_day: amount } : others
		const body = { budget: Object.keys(changed).length ? changed : null }
		await this.#attempt(() => adminCall(this.app, 'PATCH', `/admin/tokens/${encodeURIComponent(name)}`, body))
		this.#show('tokens')
	}

	async #revoke(name) {
		const text = `“${name}” is signed out everywhere at once. Its turns and runs are ended; its conversations stay.`
		if (!(await ask({ title: say('revoke'), text, action: 'Revoke', danger: true }))) return
		await this.#attempt(() => adminCall(this.app, 'DELETE', `/admin/tokens/${encodeURIComponent(name)}`))
		this.#show('tokens')
	}

	#newToken() {
		const { el, name, dollars, result, boxes } = template('new-token')
		const scopes = [...boxes.querySelectorAll('input')].map(box => [box.name, box])
		el.onsubmit = async event => {
			event.preventDefault()
			const chosen = scopes.filter(([, box]) => box.checked).map(([scope]) => scope)
			const body = {
				name: name.value.trim(),
				...(chosen.length < scopes.length && { scopes: chosen }),
				...(dollars.value && { budget: { usd_per_day: Number(dollars.value) } })
			}
			const made = await this.#attempt(() => adminCall(this.app, 'POST', '/admin/tokens', body))
			if (!made) return
			name.value = dollars.value = ''
			const [, rows] = await this.#tokens()
			this.content.lastElementChild.replaceWith(rows)
			result.replaceChildren(
				h('p.hint', { text: `The token of ${made.name}. It is shown only now.` }),
				h(
					'div.command',
					{},
					h('code', { text: made.token, tabIndex: 0 }),
					copyButton(() => made.token, 'Copy')
				),
				h(
					'div.command',
					{},
					h('code', { text: linkOf(made.token), tabIndex: 0 }),
					copyButton(() => linkOf(made.token), say('copy_the'))
				)
			)
		}
		return el
	}

	async #usage() {
		this.by ??= 'app'
		const { rows } = await adminCall(this.app, 'GET', `/admin/usage?by=${this.by}`)
		const found = records(rows)
		const keys = ['input_tokens', 'output_tokens', 'cached_read_tokens', 'thought_tokens']
		const most = Math.max(1, ...found.map(total))
		const choice = h(
			'div.tabs.small-tabs',
			{ role: 'group', label: 'Group by' },
			Object.entries(GROUPS).map(([by, text]) =>
				h('button.tab', {
					'aria-pressed': String(by === this.by),
					text,
					onclick: () => {
						this.by = by
						this.#show('usage')
					}
				})
			)
		)
		return [
			choice,
			found.length
				? table(
						[GROUPS[this.by], 'Tokens', 'Input', 'Output', 'From the cache', 'Thoughts', 'Cost'],
						found.map(row => [
							h('b', { text: row[this.by] ?? 'unknown' }),
							h('meter', { min: 0, max: most, value: total(row), label: `${total(row)} tokens` }),
							...keys.map(key => (row[key] > 0 ? compact(row[key]) : '–')),
							money(row.cost) || '–'
						])
					)
				: h('p.hint', { text: say('no_tokens') })
		]
	}

	async #audit() {
		const app = h('input', {
			type: 'search',
			placeholder: 'App',
			label: 'Only of this app',
			value: this.auditApp ?? ''
		})
		const event = h('input', {
			type: 'search',
			placeholder: say('event'),
			label: 'Only this event',
			value: this.auditEvent ?? ''
		})
		const filter = h(
			'form.filters',
			{
				onsubmit: given => {
					given.preventDefault()
					this.auditApp = app.value.trim()
					this.auditEvent = event.value.trim()
					this.#show('audit')
				}
			},
			app,
			event,
			h('button.secondary', { type: 'submit' }, 'Filter')
		)
		filter.lastElementChild.type = 'submit'
		const query = new URLSearchParams({ limit: String(PAGE) })
		if (this.auditApp) query.set('app', this.auditApp)
		if (this.auditEvent) query.set('event', this.auditEvent)
		const body = h('tbody')
		const more = h('button.quiet', { onclick: () => load() }, 'Show more')
		let after = 0
		const load = async () => {
			query.set('after', String(after))
			const { rows, next } = await adminCall(this.app, 'GET', `/admin/audit?${query}`)
			body.append(...records(rows).map(auditRow))
			after = next
			more.hidden = next === null
			setText(count, body.childElementCount ? '' : 'No such records.')
		}
		const count = h('p.hint')
		await load()
		const head = ['Time', 'App', 'Event', 'Session', 'Detail'].map(text => h('th', { scope: 'col', text }))
		return [
			filter,
			h(
				'div.table',
				{ tabIndex: 0, role: 'group', label: 'Records' },
				h('table', {}, h('thead', {}, h('tr', {}, head)), body)
			),
			count,
			more
		]
	}

	async #attempt(action) {
		try {
			return await action()
		} catch (error) {
			toast(error.message)
			if (!this.app.adminToken) this.#draw()
		}
	}
}

const linkOf = token => new URL(`#token=${token}`, document.baseURI).href
const total = row => (row.input_tokens ?? 0) + (row.output_tokens ?? 0)
const pairs = value => Object.entries(record(value)).map(([key, one]) => `${key.replaceAll('_', ' ')}: ${one}`)

const auditRow = ({ at, app, event, session_id: id, detail }) =>
	h(
		'tr',
		{},
		h('td', { text: new Date(at * 1000).toLocaleString() }),
		h('td', { text: app }),
		h('td', {}, pill('', event)),
		h('td', {}, h('code', { text: String(id ?? '').slice(0, 8), title: id })),
		h('td.hint', { text: detail ? JSON.stringify(detail).slice(0, 300) : '' })
	)

function table(heads, rows) {
	return h(
		'div.table',
		{ tabIndex: 0, role: 'group', label: heads[0] },
		h(
			'table',
			{},
			h(
				'thead',
				{},
				h(
					'tr',
					{},
					heads.map(text => (text ? h('th', { scope: 'col', text }) : h('td')))
				)
			),
			h(
				'tbody',
				{},
				rows.map(cells =>
					h(
						'tr',
						{},
						cells.map(cell => h('td', {}, cell))
					)
				)
			)
		)
	)
}
