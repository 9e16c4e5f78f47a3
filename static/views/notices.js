// Notifications: here, on this device, and when not to make a sound
import { canPush, subscribe, tellWorker, unsubscribe, worker } from '../push.js'
import { popUp } from './dialogs.js'
import { say, setText, styles, template } from './dom.js'

/** @param {Props} app */
export async function showNotices(app) {
	await styles('panels')
	const { storage } = app
	const { el, close, note, inPage, onDevice, whyNot, from, to, probe } = template('notices')
	const choice = () => storage.preferences()
	inPage.checked = Boolean(choice().notify)
	onDevice.checked = Boolean(choice().push)
	onDevice.disabled = !canPush()
	Object.assign(from, { value: choice().quiet?.from ?? '' })
	Object.assign(to, { value: choice().quiet?.to ?? '' })
	whyNot.textContent = !isSecureContext ? 'This needs HTTPS.' : canPush() ? say('allow_and') : say('this_browser')

	async function allowed() {
		if ((await globalThis.Notification?.requestPermission()) === 'granted') return true
		setText(note, say('the_browser'))
		return false
	}

	async function guarded(box, work) {
		box.disabled = true
		setText(note, '')
		try {
			await work()
		} catch (error) {
			box.checked = !box.checked
			setText(note, `${say('failed')} ${error.message}`)
		}
		box.disabled = false
	}

	inPage.onchange = () =>
		guarded(inPage, async () => {
			if (inPage.checked && !(await allowed())) inPage.checked = false
			storage.savePreferences({ notify: inPage.checked })
		})
	onDevice.onchange = () =>
		guarded(onDevice, async () => {
			if (!onDevice.checked) {
				await unsubscribe(app.api, choice().push)
				return storage.savePreferences({ push: null })
			}
			if (!(await allowed())) return (onDevice.checked = false)
			storage.savePreferences({ push: await subscribe(app.api, choice().quiet) })
		})
	from.onchange = to.onchange = async () => {
		const hours = from.value && to.value ? { from: from.value, to: to.value } : null
		storage.savePreferences({ quiet: hours })
		if (choice().push)
			await tellWorker({ token: app.api.token, quiet: hours }).catch(error => setText(note, error.message))
	}
	probe.onclick = async () => {
		if (!(await allowed())) return
		try {
			const registration = await worker()
			const words = { body: say('this_is'), tag: 'try', icon: 'static/icons/icon-192.png' }
			if (registration) await registration.showNotification('clawdforge', words)
			else new Notification('clawdforge', words)
		} catch (error) {
			setText(note, `${say('failed')} ${error.message}`)
		}
	}
	popUp(el, close)
}
