// The views that show conversations, which load together
export { ComparePanel } from './compare.js'
export { SessionView } from './sessionview.js'
