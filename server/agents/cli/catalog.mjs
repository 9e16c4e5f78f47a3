// What acpx is installed, and which agents it knows: one object of JSON on stdout.
//
//   node catalog.mjs NAME...
//
// NAMEs are agents of the server's own; their commands are the server's affair.
// Nothing is started for an agent: acpx looks for programs and packages on the disk.

import { createRequire } from 'node:module';
import path from 'node:path';
import process from 'node:process';

import { createAgentRegistry } from 'acpx/agent-registry';

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
		agents: launchesOf(registry, [...names])
	})
);
