import { h, icon, refill, template } from './dom.js'
import { choice, menuButton } from './menu.js'

export class SettingsBar {
	constructor(set) {
		this.set = set
		this.el = template('settings').el
	}

	// The choices for the palette
	entries() {
		return (this.groups ?? []).flatMap(({ kind, key, name, value, choices }) =>
			choices
				.filter(one => !one.heading)
				.map(one => choice(`${name}: ${one.name}`, one.value === value, () => this.set(kind, one.value, key)))
		)
	}

	update({ modes, models, configOptions }) {
		const groups = (this.groups = groupsOf(modes, models, configOptions ?? []))
		// An open menu must not vanish under the pointer.
		const shown = JSON.stringify(groups)
		if (shown === this.shown) return
		this.shown = shown
		refill(this.el, ...groups.map(group => this.#picker(group)))
	}

	#picker({ kind, key, name, value, choices }) {
		const current = choices.find(one => !one.heading && one.value === value)?.name
		const entryOf = one =>
			one.heading ? one : choice(one.name, one.value === value, () => this.set(kind, one.value, key), one.description)
		return pickerButton(name, typeof value === 'boolean' ? `${name}: ${current}` : (current ?? name), () =>
			choices.map(entryOf)
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
