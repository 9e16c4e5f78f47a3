// acpx: one file if `make setup` wrote it (see bundle.mjs), otherwise its 220 modules.

import { existsSync } from 'node:fs';

const BUNDLE = new URL('../../../node_modules/acpx/dist/bundle.mjs', import.meta.url);

/** @type {typeof import('./acpx_modules.mjs')} */
const acpx = await import(existsSync(BUNDLE) ? BUNDLE.href : './acpx_modules.mjs');

export const { BUILT_IN_AGENT_PACKAGES, createAgentRegistry, AcpxRuntime, createFileSessionStore } = acpx;
