// The changes of the agent, by file and turn, and the files of the session's folder
import { save } from '../actions.js'
import { nameOf } from '../list.js'
import { encodePath, parsePatch, totals } from '../patch.js'
import { promptParts } from '../transcript.js'
import { base64 } from './attachments.js'
import { codeBlock, copyButton } from './code.js'
import { Comments, showCount } from './comments.js'
import { ask, toast } from './dialogs.js'
import { counts, rowsView } from './diff.js'
import { guard, h, hint, icon, iconButton, refill, say, setText, template, View } from './dom.js'
import { bytes, languageOf, plural } from './format.js'
import { choice, menuButton } from './menu.js'

const MAX_PREVIEW = 400_000 // bytes

export class ChangesView extends View {
	constructor(app, onclose) {
		super('changes', { app, tab: 'changed', turn: null })
		this.close.onclick = onclose
		this.again.onclick = () => this.load()
		for (const name of ['changed', 'files']) this[name].onclick = () => this.open(name)
		this.tools.prepend(menuButton(this.since, () => this.#turns()))
		this.tools.append(copyButton(() => this.#text(this.#address('')), 'Copy patch'))
		this.columns.onclick = () => {
			app.storage.savePreferences({ split: !this.split })
			this.load()
		}
		this.undo.onclick = () => this.#undo()
		this.send.onclick = () => this.#sendComments()
		this.list.onkeydown = ({ key, ctrlKey, metaKey }) => {
			if (key === 'Enter' && (ctrlKey || metaKey)) this.#sendComments()
		}
		this.list.addEventListener('focusout', () => setTimeout(() => this.stale && this.load()))
		this.redo.onclick = () => this.#restore({ snapshot_id: this.kept })
		this.archive.onclick = () => this.#save(`/sessions/${this.session.id}/archive`, `${this.session.id}.zip`)
	}

	show(session) {
		this.el.hidden = !session
		if (session === this.session) return
		this.off?.()
		this.session = session
		this.off = session?.on('changes', () => this.tab === 'changed' && this.load())
		Object.assign(this, { turn: null, kept: null, opened: new Set() })
		this.#takeComments()
		this.undone.hidden = true
		if (session) this.load()
	}

	focus() {
		this[this.tab].focus()
	}

	// Whether old and new lines stand side by side
	get split() {
		return Boolean(this.app.storage.preferences().split)
	}

	// A file of the session's folder, by its path or its address
	openFile(uri) {
		const { cwd } = this.session.state
		const given = uri.startsWith('file:')
			? guard(
					() => decodeURIComponent(URL.parse(uri).pathname),
					() => '/'
				)
			: uri
		const path = given.startsWith(`${cwd}/`) ? given.slice(cwd.length + 1) : given
		if (path.startsWith('/')) return toast(say('outside'))
		this.sought = path
		for (let end = path.length; end > 0; end = path.lastIndexOf('/', end - 1))
			this.opened.add(`files ${path.slice(0, end)}`)
		this.open('files')
	}

	open(tab) {
		this.tab = tab
		for (const name of ['changed', 'files']) this[name].ariaPressed = String(name === tab)
		this.load()
	}

	#takeComments() {
		const { session, app } = this
		const count = () => showCount(this.send, this.sendWords, this.comments.written.length)
		this.comments = new Comments(session && app.storage.draft(session.id, 'comments'), items => {
			app.storage.saveDraft(session.id, items, 'comments')
			count()
		})
		count()
	}

	#sendComments() {
		const { comments, session } = this
		const text = comments.prompt
		if (!text) return
		this.app.open.get(session.id).view.send({ prompt: [{ type: 'text', text }] }, () => {
			comments.clear()
			this.focus()
			this.load()
		})
	}

	#address(path) {
		const query = new URLSearchParams()
		if (this.turn) query.set('since_turn', String(this.turn.index))
		if (path != null) query.set('path', path)
		return `/sessions/${this.session.id}/changes${query.size ? `?${query}` : ''}`
	}

	#fetch = address => this.app.api.fetch('GET', address)

	async #text(address) {
		return (await this.#fetch(address)).text()
	}

	#save = (address, name) => this.app.actions.attempt(async () => save(await (await this.#fetch(address)).blob(), name))

	#turns() {
		const all = this.session.model.turns.filter(turn => turn.prompt && !turn.withdrawn)
		const since = (turn, label) =>
			choice(label, turn === this.turn, () => {
				this.turn = turn
				this.load()
			})
		return [
			since(null, 'The whole session'),
			...all
				.toReversed()
				.slice(0, 50)
				.map((turn, at) => since(turn, `${at ? 'Since' : 'Only'} “${titleOfTurn(turn)}”`))
		]
	}

	async load() {
		const { session, tab } = this
		const changed = tab === 'changed'
		const mine = (this.loading = {})
		setText(this.sinceName, this.turn ? `Since “${titleOfTurn(this.turn)}”` : 'The whole session')
		this.tools.hidden = this.undo.hidden = !changed
		this.el.classList.toggle('split', changed && this.split)
		this.columns.ariaPressed = String(this.split)
		setText(this.undoName, this.turn ? 'Undo since here' : 'Undo all')
		this.list.ariaBusy = 'true'
		try {
			const rows = changed ? await this.#changes() : (await this.#entries('')).map(one => this.#entry(one))
			if (mine !== this.loading) return
			// A comment that is being written stays where it is
			this.stale = this.list.querySelector('textarea:focus') !== null
			if (!this.stale) refill(this.list, ...rows)
			setText(this.note, rows.length ? '' : changed ? say('no_changes') : say('no_files'))
		} catch (error) {
			if (mine !== this.loading) return
			refill(this.list)
			setText(this.note, error.message)
		}
		if (session === this.session) this.list.ariaBusy = 'false'
	}

	async #changes() {
		const { files } = await this.app.api.call('GET', this.#address())
		const { added, removed } = totals(files)
		counts(this, added, removed)
		this.undo.disabled = !files.length || this.session.closed
		return files.map(file => this.#file(file, files.length === 1))
	}

	#file({ path, status, additions, deletions }, open) {
		const view = template('changed-file')
		setText(view.status, status[0].toUpperCase())
		view.status.title = status
		view.el.dataset.status = status
		setText(view.name, path)
		view.name.title = path
		if (additions != null) counts(view, additions, deletions)
		const tools = h(
			'p.chips',
			{},
			copyButton(() => this.#text(this.#address(path)), 'Copy patch'),
			status !== 'deleted' && this.#download(path)
		)
		return this.#foldable(view, path, () => this.#fill(view.body, tools, () => this.#diff(path)), open)
	}

	// Stays open when the list is loaded again, and is filled when it is opened first
	#foldable(view, path, fill, open = false) {
		const { el, body } = view
		const key = `${this.tab} ${path}`
		el.ontoggle = () => {
			this.opened[el.open ? 'add' : 'delete'](key)
			if (el.open && !body.firstChild) fill()
		}
		el.open = open || this.opened.has(key)
		return el
	}

	#download = path =>
		iconButton('quiet', 'down', 'Download', () =>
			this.#save(`/sessions/${this.session.id}/files/${encodePath(path)}`, nameOf(path))
		)

	async #fill(body, tools, build) {
		body.append(tools)
		try {
			body.append(...[await build()].flat())
		} catch (error) {
			body.append(hint(error.message))
		}
	}

	async #diff(path) {
		const found = parsePatch(await this.#text(this.#address(path)))
		const rows = found.flatMap(one => one.rows)
		if (!rows.length) return hint(found.some(one => one.binary) ? say('not_text') : say('no_lines'))
		return rowsView(rows, path, { ...this.comments.of(path), split: this.split && !this.app.isNarrow() })
	}

	async #undo() {
		const first = this.turn ?? this.session.model.turns.find(turn => turn.prompt && !turn.withdrawn)
		const sure = await ask({
			title: say('undo_2'),
			text: `“${titleOfTurn(first)}”: ${say('undo')}`,
			action: 'Undo',
			danger: true
		})
		if (sure) this.#restore({ turn_index: first.index })
	}

	async #restore(body) {
		await this.app.actions.attempt(async () => {
			const done = await this.app.api.call('POST', `/sessions/${this.session.id}/undo`, body)
			const left = done.not_restored.length
			this.kept = done.snapshot_id
			this.undone.hidden = false
			setText(this.redo, body.snapshot_id ? 'Undo that' : 'Undo the undo')
			setText(
				this.undoneWords,
				`${plural(done.restored, 'file')} restored${left ? `; ${left} not: ${done.not_restored.slice(0, 3).join(', ')}` : '.'}`
			)
			this.redo.focus()
			this.session.look()
			await this.session.lookAtChanges()
			await this.load()
		})
	}

	async #entries(path) {
		const { entries } = await this.app.api.files(this.session.id, path)
		const order = ({ type }) => (type === 'directory' ? 0 : 1)
		return entries.sort((a, b) => order(a) - order(b) || (a.path < b.path ? -1 : 1))
	}

	#entry({ path, type, size }) {
		const view = template('changed-file')
		const folder = type === 'directory'
		view.status.append(icon(folder ? 'folder' : 'file'))
		setText(view.name, nameOf(path))
		view.name.title = path
		view.stat.replaceWith(h('small', { text: folder || type === 'link' ? '' : bytes(size) }))
		if (path === this.sought) {
			this.sought = null
			requestAnimationFrame(() => view.el.firstElementChild.focus())
		}
		const inside = async () => {
			const rows = (await this.#entries(path)).map(one => this.#entry(one))
			return rows.length ? rows : hint('Empty')
		}
		return this.#foldable(view, path, () => {
			if (folder) this.#fill(view.body, '', inside)
			else this.#fill(view.body, h('p.chips', {}, this.#download(path)), () => this.#preview(path, size))
		})
	}

	async #preview(path, size) {
		if (size > MAX_PREVIEW) return hint(say('too_large'))
		const response = await this.#fetch(`/sessions/${this.session.id}/files/${encodePath(path)}?inline=true`)
		const type = response.headers.get('Content-Type') ?? ''
		if (/^image\/(png|jpeg|gif|webp)/.test(type)) {
			const blob = await response.blob()
			return h('img', { src: `data:${blob.type};base64,${await base64(blob)}`, alt: path })
		}
		if (!type.startsWith('text/')) return hint(say('no_preview'))
		const text = await response.text()
		return text ? codeBlock(text, languageOf(path)).el : hint('Empty')
	}
}

const titleOfTurn = ({ prompt }) => promptParts(prompt).text.trim().split('\n')[0].slice(0, 60) || 'files'
