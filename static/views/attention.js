import { spell } from '../marks.js'
import { setText } from './dom.js'

const MAX_TITLE = 200
const MAX_BODY = 500
const STATES = { idle: ['', ''], running: ['Working · ', '-running'], waiting: ['Waiting for you · ', '-waiting'] }
const iconAddress = (suffix = '') => new URL(`static/favicon${suffix}.svg`, document.baseURI).href

export class Attention {
	show(state, title, mark = state) {
		const [words] = STATES[state]
		const [, suffix] = STATES[mark]
		document.title = words + spell(title || 'clawdforge').slice(0, MAX_TITLE)
		if (this.mark === mark) return
		this.mark = mark
		document.querySelector('link[rel="icon"]').setAttribute('href', iconAddress(suffix))
	}

	say(text, urgent) {
		setText(document.getElementById(urgent ? 'urgent' : 'spoken'), text)
	}

	notify(title, body, onclick) {
		if (document.visibilityState === 'visible' && document.hasFocus()) return
		const words = { body: spell(body).slice(0, MAX_BODY), tag: title, icon: iconAddress() }
		try {
			const note = new Notification(spell(title), words)
			note.onclick = () => {
				window.focus()
				onclick()
				note.close()
			}
		} catch {
			// Android shows only those of a service worker
			navigator.serviceWorker?.ready.then(worker => worker.showNotification(spell(title), words)).catch(() => {})
		}
	}
}
