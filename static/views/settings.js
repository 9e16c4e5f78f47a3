import { h, icon, template } from './dom.js'
import { menuButton } from './menu.js'

export class SettingsBar {
	constructor(set) {
		this.set = set
		this.el = template('settings').el
	}

	// The choices for the palette
	entries() {
		return (this.groups ?? []).flatMap(({ kind, key, name, value, choices }) =>
			choices
				.filter(choice => !choice.heading)
				.map(choice => ({
					label: `${name}: ${choice.name}`,
					checked: choice.value === value,
					onselect: () => this.set(kind, choice.value, key)
				}))
		)
	}

	update({ modes, models, configOptions }) {
		const groups = (this.groups = groupsOf(modes, models, configOptions ?? []))
		// An open menu must not vanish under the pointer.
		const shown = JSON.stringify(groups)
		if (shown === this.shown) return
		this.shown = shown
		this.el.replaceChildren(...groups.map(group => this.#picker(group)))
	}

	#picker({ kind, key, name, value, choices }) {
		const current = choices.find(choice => !choice.heading && choice.value === value)?.name
		const entry = choice =>
			choice.heading
				? choice
				: {
						label: choice.name,
						detail: choice.description,
						checked: choice.value === value,
						onselect: () => this.set(kind, choice.value, key)
					}
		return pickerButton(name, typeof value === 'boolean' ? `${name}: ${current}` : (current ?? name), () =>
			choices.map(entry)
		)
	}
}

export function pickerButton(name, words, entries) {
	const button = h(
		'button.picker',
		{ label: `${name}: ${words}`, title: name },
		h('span.ellipsis', { text: words }),
		icon('chevron')
	)
	return menuButton(button, () => [{ heading: name }, ...entries()])
}

function groupsOf(modes, models, options) {
	const groups = []
	const simple = (kind, name, value, list = []) => {
		const choices = list.map(({ id, ...one }) => ({ value: id, ...one }))
		if (
			choices.length &&
			!options.some(({ id, type, category }) => type === 'select' && (category === kind || id === kind))
		)
			groups.push({ kind, name, value, choices })
	}
	simple('mode', 'Mode', modes?.currentModeId, modes?.availableModes)
	simple('model', 'Model', models?.currentModelId, models?.availableModels)
	for (const { id: key, name, type, currentValue: value, options: list } of options) {
		const choices =
			type === 'boolean'
				? [
						{ value: true, name: 'On' },
						{ value: false, name: 'Off' }
					]
				: list
		if (choices.length) groups.push({ kind: 'config_option', key, name, value, choices })
	}
	return groups
}
