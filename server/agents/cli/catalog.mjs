// Writes the versions of acpx and Node, and the agents that acpx knows, as one JSON object.
//
//   node catalog.mjs NAME...
//
// Each NAME is an agent that the server's settings define, with a command of its own.
// No agent is started: acpx looks for programs and packages on the disk.

import { createRequire } from 'node:module';
import path from 'node:path';
import process from 'node:process';

import { BUILT_IN_AGENT_PACKAGES, createAgentRegistry } from 'acpx/agent-registry';

import { launchesOf } from '../host/launches.mjs';

const require = createRequire(import.meta.url);
const manifest = require.resolve('acpx/package.json');
const { version, bin } = require(manifest);
const registry = createAgentRegistry();
const names = new Set([...registry.list(), ...process.argv.slice(2)]);

process.stdout.write(
	JSON.stringify({
		versions: { acpx: version, node: process.versions.node },
		cli: path.join(path.dirname(manifest), typeof bin === 'string' ? bin : bin.acpx),
		agents: launchesOf(registry, BUILT_IN_AGENT_PACKAGES, [...names])
	})
);
