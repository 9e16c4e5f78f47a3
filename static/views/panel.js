// The common parts of the pages beside the conversations: a bar, a heading, a column
import { h, icon } from './dom.js'

export class PanelPage {
	/** @param {Props} app */
	constructor(app, title, ...actions) {
		this.app = app
		this.heading = h('h1', { text: title, tabIndex: -1 })
		this.body = h('div.panel-body')
		const menu = h(
			'button.icon-button.only-narrow',
			{ label: 'Show the sessions', onclick: () => app.showSidebar() },
			icon('menu')
		)
		this.el = h(
			'section.panel',
			{ label: title },
			h('header.bar', {}, menu, h('div.grow', {}, this.heading), actions),
			h('div.panel-scroll', { tabIndex: -1 }, this.body)
		)
	}

	focus() {
		this.heading.focus()
	}
}

export const pill = (tone, text) => h('span.pill', { 'data-tone': tone, text })
