// Notifications: here, on this device, and when not to make a sound
import { canPush, subscribe, tellWorker, unsubscribe, worker } from '../push.js'
import { h, icon, setText, styles } from './dom.js'

/** @param {Props} app */
export async function showNotices(app) {
	await styles('panels')
	const { storage } = app
	const note = h('p.form-note', { role: 'alert' })
	const choice = () => storage.preferences()
	const inPage = h('input', { type: 'checkbox', checked: Boolean(choice().notify) })
	const onDevice = h('input', { type: 'checkbox', checked: Boolean(choice().push), disabled: !canPush() })
	const quiet = choice().quiet ?? {}
	const from = h('input', { type: 'time', value: quiet.from ?? '', label: 'Quiet from' })
	const to = h('input', { type: 'time', value: quiet.to ?? '', label: 'Quiet until' })
	const why = !isSecureContext
		? 'This needs HTTPS.'
		: canPush()
			? 'Allow and Reject stand in the notification. This device stays signed in for that until you turn it off.'
			: 'This browser cannot do it. On an iPhone, add the page to the home screen first.'

	async function allowed() {
		if ((await globalThis.Notification?.requestPermission()) === 'granted') return true
		setText(note, 'The browser does not allow notifications of this page. Allow them in its settings.')
		return false
	}

	async function guarded(box, work) {
		box.disabled = true
		setText(note, '')
		try {
			await work()
		} catch (error) {
			box.checked = !box.checked
			setText(note, `That did not work: ${error.message}`)
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
	const probe = h(
		'button.secondary',
		{
			onclick: async () => {
				if (!(await allowed())) return
				try {
					const registration = await worker()
					const words = { body: 'This is how an agent calls you.', tag: 'try', icon: 'static/icons/icon-192.png' }
					if (registration) await registration.showNotification('clawdforge', words)
					else new Notification('clawdforge', words)
				} catch (error) {
					setText(note, `That did not work: ${error.message}`)
				}
			}
		},
		icon('bell'),
		'Try it'
	)
	const row = (box, title, text) => h('label.check.notice', {}, box, h('span', {}, title, h('small', { text })))
	const close = h('button.icon-button', { label: 'Close', onclick: () => el.close() }, icon('close'))
	const el = h(
		'dialog.dialog',
		{ label: 'Notifications' },
		h('header.panel-head', {}, h('h2.grow', { text: 'Notifications' }), close),
		row(inPage, 'While the page is open in the background', 'When an agent waits for you, or has finished.'),
		row(onDevice, 'On this device, also when no page is open', why),
		h('fieldset.quiet-hours', {}, h('legend', { text: 'Quiet hours: no sound' }), from, h('span', { text: 'to' }), to),
		note,
		h('div.chips.dialog-actions', {}, probe)
	)
	el.addEventListener('click', event => event.target === el && el.close())
	el.onclose = () => el.remove()
	document.body.append(el)
	el.showModal()
}
