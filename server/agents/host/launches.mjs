// Lists the agents that acpx knows: the command of an installed one, the requirements of another.

// The versions that this project was tested with, if acpx requires older ones: it starts any version
// on the PATH.
const TESTED = { claude: '0.101', codex: '2' };

/** The required version of a package, in the form of an argument of npm: `0.76`. */
function versionOf(name, packages) {
	if (TESTED[name]) return TESTED[name];
	const range = packages[name]?.packageRange;
	return range?.replace(/^\^(0\.\d+|[1-9]\d*)\..*$/, '$1');
}

/**
 * `{name, launch}` of every agent. A missing package has the `version` to install.
 *
 * @param packages acpx's `BUILT_IN_AGENT_PACKAGES`.
 */
export function launchesOf(registry, packages, names) {
	return names.map(name => {
		const launch = registry.inspect(name)?.launch ?? null;
		for (const need of launch?.requirements ?? []) {
			if (need.kind === 'package') need.version = versionOf(name, packages);
		}
		return { name, launch };
	});
}
