// Ctrl K: sessions, commands, settings, and everything that was said, from one field
import { nameOf } from '../list.js'
import { showDialog } from './dialogs.js'
import { filled, h, icon, markOption, refill, say, setText, styles, template, uid } from './dom.js'
import { ago, dotted } from './format.js'

const SEARCH_AFTER = 200 // ms after the last key
const SESSIONS = 8
const SESSIONS_FOUND = 20
const COMMANDS = 12
const HITS = 12

/**
 * @param {Props} app
 * @param {() => string} typed what has been typed since the palette was asked for
 */
export async function openPalette(app, commands, typed) {
	await styles('panels')
	if (document.querySelector('dialog[open]')) return
	const { el, list, field, note } = template('palette')
	let options = []
	let marked = 0
	let hits = []
	let timer

	const words = () => field.value.trim().toLowerCase().split(/\s+/).filter(Boolean)
	const matches = (text, wanted) => wanted.every(word => text.toLowerCase().includes(word))

	function draw() {
		const wanted = words()
		const found = app.rows
			.filter(({ title, agent, project, id }) => matches(`${title} ${agent} ${project ?? ''} ${id}`, wanted))
			.sort((a, b) => Number(b.state === 'waiting') - Number(a.state === 'waiting') || b.at - a.at)
			.slice(0, wanted.length ? SESSIONS_FOUND : SESSIONS)
		const chosen = commands.filter(({ label, disabled }) => !disabled && matches(label, wanted))
		const sections = [
			['Sessions', found.map(sessionOption)],
			['Commands', (wanted.length ? chosen : chosen.slice(0, COMMANDS)).map(commandOption)],
			['Said in conversations', hits.map(hitOption)]
		].filter(([, some]) => some.length)
		if (wanted.length && chosen.length && !found.some(({ title }) => matches(title, wanted)))
			sections.sort(([a]) => (a === 'Commands' ? -1 : 1))
		options = sections.flatMap(([, some]) => some)
		refill(
			list,
			...sections.flatMap(([name, some]) => [h('li.menu-heading', { role: 'presentation', text: name }), ...some])
		)
		setText(note, options.length ? '' : say('nothing_is'))
		mark(0)
	}

	function option(onselect, sign, texts) {
		const { el: row, sign: place } = filled('palette-option', texts)
		place.replaceWith(sign)
		row.id = uid()
		row.onpointermove = () => mark(options.indexOf(row))
		row.onclick = () => {
			el.close()
			onselect()
		}
		return row
	}

	const sessionOption = ({ id, title, agent, project, at, state }) =>
		option(() => app.go(id), h('span.dot', { 'data-of': state }), {
			title: title || 'Untitled',
			facts: dotted([agent, project && nameOf(project), at > 0 && ago(at)])
		})
	const commandOption = ({ label, detail, keys = '', icon: name, checked, onselect }) =>
		option(onselect, icon(checked ? 'check' : (name ?? 'move')), {
			title: label,
			keys,
			facts: !keys && detail && detail.length < 60 ? detail : ''
		})
	function hitOption({ session_id: id, title, snippet, turn_index: turn, subagent }) {
		const wanted = words()
		async function visit() {
			await app.go(id)
			app.open.get(id)?.view.visitTurn(turn, wanted)
		}
		const facts = subagent ? 'a subagent' : ''
		return option(visit, icon(subagent ? 'fork' : 'list'), { title: title || 'Untitled', snippet, facts })
	}

	function mark(index) {
		marked = Math.max(0, Math.min(options.length - 1, index))
		markOption(field, options, options[marked])
	}

	field.oninput = () => {
		hits = []
		draw()
		clearTimeout(timer)
		const wanted = field.value.trim()
		if (wanted.length < 2) return
		timer = setTimeout(async () => {
			const found = await app.api.search(wanted, HITS).catch(() => [])
			if (field.value.trim() !== wanted) return
			hits = found
			const at = marked
			draw()
			mark(at)
		}, SEARCH_AFTER)
	}
	el.onkeydown = event => {
		if (event.isComposing || event.keyCode === 229) return
		const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key]
		if (step) mark(Math.abs(step) === 1 ? (marked + step + options.length) % options.length : marked + step)
		else if (event.key === 'Enter') options[marked]?.click()
		else return
		event.preventDefault()
	}
	showDialog(el).then(() => clearTimeout(timer))
	field.focus()
	field.value = typed()
	field.oninput()
}
