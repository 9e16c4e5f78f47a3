// What acpx knows of each agent: is it installed, with which command, and what it needs else.

import { BUILT_IN_AGENT_PACKAGES } from 'acpx/agent-registry';

// What this project's tests run, if acpx asks for an older one: it starts whatever is on the PATH.
const TESTED = { codex: '2' };

/** The versions of a package that are needed, as npm takes it on a command line: `0.76`. */
function versionOf(name) {
	if (TESTED[name]) return TESTED[name];
	const range = BUILT_IN_AGENT_PACKAGES[name]?.packageRange;
	return range?.replace(/^\^(0\.\d+|[1-9]\d*)\..*$/, '$1');
}

/** `{name, launch}` of every agent; a package that is missing has its `version`. */
export function launchesOf(registry, names) {
	return names.map(name => {
		const launch = registry.inspect(name)?.launch ?? null;
		for (const need of launch?.requirements ?? []) {
			if (need.kind === 'package') need.version = versionOf(name);
		}
		return { name, launch };
	});
}
