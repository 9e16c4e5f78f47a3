// The views at the right, which load together
export { ChangesView } from './changes.js'
export { FramesView } from './frames.js'
