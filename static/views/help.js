// ?: what the keys do
import { h, icon, styles } from './dom.js'

const mac = /Mac|iPhone|iPad/.test(navigator.platform)
const GROUPS = {
	Anywhere: [
		['Ctrl K', 'Find a session, a command, or anything that was said'],
		['Ctrl Shift O', 'New session'],
		['Ctrl .', 'The next request that waits for you, in any session'],
		['Ctrl Shift F', 'Filter the list of sessions'],
		['? or Ctrl /', 'This help'],
		['Esc', 'Stop the agent; close what is open']
	],
	'In a conversation': [
		['Alt ↑, Alt ↓', 'Previous or next prompt'],
		['A to Z', 'Write a message'],
		['1 to 9', 'Choose an option of the request that has the focus'],
		['Ctrl `', 'Raw frames of this session']
	],
	'In the message field': [
		['Enter', 'Send (on a touch screen: a new line)'],
		['Shift Enter', 'A new line'],
		['↑, ↓', 'Earlier prompts'],
		['/', 'Commands of the agent']
	]
}

const keys = text =>
	text
		.split(/( or |, | to )/)
		.map((part, index) =>
			index % 2 ? part : part.split(' ').map(key => h('kbd', { text: mac && key === 'Ctrl' ? '⌘' : key }))
		)

export async function showHelp() {
	await styles('panels')
	const close = h('button.icon-button', { label: 'Close', onclick: () => el.close() }, icon('close'))
	const el = h(
		'dialog.dialog.wide-dialog',
		{ label: 'Keyboard shortcuts' },
		h('header.panel-head', {}, h('h2.grow', { text: 'Keyboard shortcuts' }), close),
		h(
			'div.help-groups',
			{},
			Object.entries(GROUPS).map(([name, rows]) =>
				h(
					'section',
					{},
					h('h3', { text: name }),
					h(
						'dl',
						{},
						rows.map(([key, text]) => [h('dt', {}, keys(key)), h('dd', { text })])
					)
				)
			)
		)
	)
	el.addEventListener('click', event => event.target === el && el.close())
	el.onclose = () => el.remove()
	document.body.append(el)
	el.showModal()
}
