// The common parts of the pages beside the conversations: a bar, a heading, a column
import { h, View } from './dom.js'

export class PanelPage extends View {
	/** @param {Props} app */
	constructor(app, title) {
		super('panel', { app })
		this.heading.textContent = this.el.ariaLabel = title
		this.menu.onclick = () => app.showSidebar()
	}

	focus() {
		this.heading.focus()
	}
}

export const pill = (tone, text) => h('span.pill', { 'data-tone': tone, text })
