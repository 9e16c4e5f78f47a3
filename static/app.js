// Puts the modules of the page together, and follows the browser's events
import { begin, loadAgents, signOut } from './access.js'
import { sessionActions } from './actions.js'
import { attendSoon } from './attend.js'
import { app, currentEntry } from './context.js'
import './keys.js'
import { menuOf } from './menus.js'
import { closePane, go, goBeside, route, show, showSide, showSidebar, showWaiting } from './navigation.js'
import { load } from './parts.js'
import { forget, made, openSession } from './sessions.js'
import { storage } from './storage.js'
import './trusted.js' // takes the name of the policy before anything else can
import { guard } from './views/dom.js'
import { applyTheme } from './views/theme.js'

Object.assign(app, { go, goBeside, closePane, show, showSide, showSidebar, showWaiting, menuOf })
Object.assign(app, { load, loadAgents, made, forget, openSession, signOut })
app.chooseAgent = name => app.shell.start.chooseAgent(name)
app.actions = sessionActions(app)

function wake() {
	if (!app.shell || document.visibilityState !== 'visible') return
	for (const { session } of app.open.values()) session.wire.wake()
	app.list.wake()
	attendSoon()
}
document.addEventListener('visibilitychange', wake)
for (const name of ['online', 'offline', 'pageshow']) window.addEventListener(name, wake)
window.addEventListener('popstate', () => (/\b(token|share)=/.test(location.hash) ? begin() : route()))
window.addEventListener('beforeprint', () => currentEntry().view?.conversation.whole())
for (const name of ['dragover', 'drop']) window.addEventListener(name, event => event.preventDefault())

guard(() =>
	navigator.serviceWorker?.addEventListener('message', ({ data }) => app.shell && 'go' in data && app.go(data.go))
)
applyTheme(storage.preferences().theme)
begin()
