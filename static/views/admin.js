// The operator's page: tokens, usage and the audit, with the admin token
import { spell } from '../marks.js'
import { list, record, records } from '../normalise.js'
import { adminForm } from './adminsign.js'
import { copyButton } from './code.js'
import { ask, toast } from './dialogs.js'
import { filled, h, iconButton, refill, say, setText, template } from './dom.js'
import { ago, compact, dotted, money } from './format.js'
import { PanelPage, pill } from './panel.js'

const PAGE = 200
const KEYS = ['input_tokens', 'output_tokens', 'cached_read_tokens', 'thought_tokens']

export class AdminPanel extends PanelPage {
	constructor(app) {
		super(app, 'Administration')
		this.leave = iconButton('quiet', 'leave', 'Forget token', () => this.#forget(), { hidden: '' })
		this.bar.append(this.leave)
		Object.assign(this, { tab: 'tokens', by: 'app', auditApp: '', auditEvent: '' })
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
			return refill(this.body, h('p.lede', { text: say('apps_their') }), form.el)
		}
		const { el, bar, content } = template('admin')
		Object.assign(this, { content, tabs: [...bar.children] })
		for (const one of this.tabs) one.onclick = () => this.#show(one.dataset.tab)
		bar.onkeydown = event => this.#arrow(event)
		refill(this.body, ...el.children)
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
			const shown = one.dataset.tab === name
			one.ariaSelected = String(shown)
			one.tabIndex = shown ? 0 : -1
			if (shown) this.content.ariaLabel = one.textContent
		}
		this.content.ariaBusy = 'true'
		try {
			const build = { tokens: () => this.#tokens(), usage: () => this.#usage(), audit: () => this.#audit() }[name]
			const nodes = await build()
			if (this.tab === name) refill(this.content, ...nodes)
		} catch (error) {
			if (!this.app.adminToken) return this.#draw()
			refill(this.content, h('p.form-note', { role: 'alert', text: error.message }))
		}
		this.content.ariaBusy = 'false'
	}

	async #tokens() {
		const { tokens } = await this.app.callAdmin('GET', '/admin/tokens')
		const { el, rows } = template('admin-tokens')
		rows.append(...records(tokens).map(one => this.#token(one)))
		return [this.#newToken(), el]
	}

	#token({ name, scopes: given, limits, budget, spent, ip_cidrs: networks, env, created_at: at }) {
		const parts = [
			...pairs(limits),
			...pairs(budget),
			...pairs(spent).map(one => `spent: ${one}`),
			list(networks).length > 0 && `only from ${list(networks).join(', ')}`,
			list(env).length > 0 && `env: ${list(env).join(', ')}`
		]
		const texts = { name, limits: dotted(parts) || 'none', created: ago(at) }
		const { el, scopes, change, revoke } = filled('admin-token', texts)
		scopes.append(...(given ? list(given) : ['all']).map(one => pill('', one)))
		change.ariaLabel = spell(`Change the budget of ${name}`)
		change.onclick = () => this.#budget(name, record(budget))
		revoke.ariaLabel = spell(`Revoke the token of ${name}`)
		revoke.onclick = () => this.#revoke(name)
		return el
	}

	async #budget(name, budget) {
		const title = `Budget of ${name} per day in US dollars (0: none)`
		const given = await ask({ title, input: String(budget.usd_per_day ?? ''), action: 'Change' })
		if (given === null) return
		const { usd_per_day: _, ...others } = budget
		const amount = Number(given)
		if (!(amount >= 0)) return toast(say('a_budget'))
		const changed = amount > 0 ? { ...others, usd_per_day: amount } : others
		this.#change('PATCH', name, { budget: Object.keys(changed).length ? changed : null })
	}

	async #revoke(name) {
		const text = `“${name}” ${say('revoke_text')}`
		if (await ask({ title: say('revoke'), text, action: 'Revoke', danger: true })) this.#change('DELETE', name)
	}

	/** @type {(method: string, name: string, body?: any) => Promise<void>} */
	async #change(method, name, body) {
		await this.#attempt(() => this.app.callAdmin(method, `/admin/tokens/${encodeURIComponent(name)}`, body))
		this.#show('tokens')
	}

	#newToken() {
		const { el, name, dollars, result, boxes } = template('new-token')
		const scopes = [...boxes.querySelectorAll('input')]
		el.onsubmit = async event => {
			event.preventDefault()
			const chosen = scopes.filter(box => box.checked).map(box => box.name)
			const body = {
				name: name.value.trim(),
				...(chosen.length < scopes.length && { scopes: chosen }),
				...(dollars.value && { budget: { usd_per_day: Number(dollars.value) } })
			}
			const made = await this.#attempt(() => this.app.callAdmin('POST', '/admin/tokens', body))
			if (!made) return
			name.value = dollars.value = ''
			const [, rows] = await this.#tokens()
			this.content.lastElementChild.replaceWith(rows)
			const texts = { words: `The token of ${made.name}. It is shown only now.`, token: made.token }
			const secret = filled('new-secret', { ...texts, link: linkOf(made.token) })
			secret.token.after(copyButton(() => made.token))
			secret.link.after(copyButton(() => linkOf(made.token), say('copy_the')))
			refill(result, ...secret.el.children)
		}
		return el
	}

	async #usage() {
		const { rows: given } = await this.app.callAdmin('GET', `/admin/usage?by=${this.by}`)
		const found = records(given)
		const { el, choice, table, none, by, rows } = template('admin-usage')
		for (const one of choice.children) {
			const chosen = one.dataset.by === this.by
			one.ariaPressed = String(chosen)
			if (chosen) setText(by, one.textContent)
			one.onclick = () => {
				this.by = one.dataset.by
				this.#show('usage')
			}
		}
		table.hidden = !found.length
		none.hidden = found.length > 0
		const most = Math.max(1, ...found.map(total))
		rows.append(...found.map(row => this.#use(row, most)))
		return [...el.children]
	}

	#use(row, most) {
		const counts = Object.fromEntries(KEYS.map(key => [key, row[key] > 0 ? compact(row[key]) : '–']))
		const texts = { name: row[this.by] ?? 'unknown', cost: money(row.cost) || '–', ...counts }
		const { el, meter } = filled('admin-use', texts)
		Object.assign(meter, { max: most, value: total(row), ariaLabel: `${total(row)} tokens` })
		return el
	}

	async #audit() {
		const { el, form, app, event, rows, count, more } = template('admin-audit')
		app.value = this.auditApp
		event.value = this.auditEvent
		form.onsubmit = given => {
			given.preventDefault()
			Object.assign(this, { auditApp: app.value.trim(), auditEvent: event.value.trim() })
			this.#show('audit')
		}
		const query = new URLSearchParams({ limit: String(PAGE) })
		if (this.auditApp) query.set('app', this.auditApp)
		if (this.auditEvent) query.set('event', this.auditEvent)
		let after = 0
		const load = async () => {
			query.set('after', String(after))
			const { rows: given, next } = await this.app.callAdmin('GET', `/admin/audit?${query}`)
			rows.append(...records(given).map(recordRow))
			after = next
			more.hidden = next === null
			setText(count, rows.childElementCount ? '' : 'No such records.')
		}
		more.onclick = () => this.#attempt(load)
		await load()
		return [...el.children]
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

function recordRow({ at, app, event, session_id: id, detail }) {
	const { el, session } = filled('admin-record', {
		at: new Date(at * 1000).toLocaleString(),
		app,
		event,
		session: String(id ?? '').slice(0, 8),
		detail: detail ? JSON.stringify(detail).slice(0, 300) : ''
	})
	if (id) session.title = spell(id)
	return el
}
