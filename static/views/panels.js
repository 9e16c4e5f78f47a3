// The pages beside the conversations, which load together
export { AdminPanel } from './admin.js'
export { AgentsPanel } from './agents.js'
export { BoardPanel } from './board.js'
