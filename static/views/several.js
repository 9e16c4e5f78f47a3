// The agents that get the same prompt, to be compared
import { h, setText, styles } from './dom.js'

/** @returns {Promise<string[] | null>} at least one */
export async function chooseAgents(names, chosen) {
	await styles('panels')
	const boxes = names.map(name =>
		h('input', { type: 'checkbox', value: name, checked: chosen.includes(name), onchange: () => update() })
	)
	const words = h('span')
	const yes = h('button.primary', { onclick: () => el.close('yes') }, words)
	const el = h(
		'dialog.dialog',
		{ label: 'Ask several agents' },
		h('h2', { text: 'Ask several agents' }),
		h('p.hint', {
			text: 'Each gets your prompt in a session of its own. Their answers stand side by side. Agents that change the same folder are best kept apart by worktrees.'
		}),
		h(
			'div.agent-choice',
			{},
			boxes.map((box, at) => h('label.check', {}, box, names[at]))
		),
		h('div.chips.dialog-actions', {}, h('button.secondary', { onclick: () => el.close('') }, 'Cancel'), yes)
	)
	const picked = () => boxes.filter(one => one.checked).map(one => one.value)
	function update() {
		const { length } = picked()
		yes.disabled = length === 0
		setText(words, length > 1 ? `Compare ${length}` : 'Ask one')
	}
	update()
	document.body.append(el)
	el.showModal()
	return new Promise(resolve => {
		el.onclose = () => {
			el.remove()
			resolve(el.returnValue === 'yes' ? picked() : null)
		}
	})
}
