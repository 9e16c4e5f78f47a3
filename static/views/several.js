// The agents that get the same prompt, to be compared
import { showDialog } from './dialogs.js'
import { h, setText, styles, template } from './dom.js'

/** @returns {Promise<string[] | null>} at least one */
export async function chooseAgents(names, chosen) {
	await styles('panels')
	const boxes = names.map(name =>
		h('input', { type: 'checkbox', value: name, checked: chosen.includes(name), onchange: () => update() })
	)
	const { el, list, cancel, yes } = template('several')
	list.append(...boxes.map((box, at) => h('label.check', {}, box, names[at])))
	yes.onclick = () => el.close('yes')
	cancel.onclick = () => el.close('')
	const picked = () => boxes.filter(one => one.checked).map(one => one.value)
	function update() {
		const { length } = picked()
		yes.disabled = length === 0
		setText(yes, length > 1 ? `Compare ${length}` : 'Ask one')
	}
	update()
	return (await showDialog(el, false)) === 'yes' ? picked() : null
}
