// The dialogs that load together, when the first of them is opened
export { chooseFolder } from './folders.js'
export { showHelp } from './help.js'
export { showNotices } from './notices.js'
export { chooseAgents } from './several.js'
