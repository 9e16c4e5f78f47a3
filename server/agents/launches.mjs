// What acpx knows of each agent: is it installed, with which command, and what it needs else.

import { BUILT_IN_AGENT_PACKAGES } from "acpx/agent-registry";

/** The versions of a package that acpx asks for, as npm takes it on a command line: `0.76`. */
function versionOf(name) {
  const range = BUILT_IN_AGENT_PACKAGES[name]?.packageRange;
  return range?.replace(/^\^(0\.\d+|[1-9]\d*)\..*$/, "$1");
}

/** `{name, launch}` of every agent; a package that is missing has its `version`. */
export function launchesOf(registry, names) {
  return names.map((name) => {
    const launch = registry.inspect(name)?.launch ?? null;
    for (const need of launch?.requirements ?? []) {
      if (need.kind === "package") need.version = versionOf(name);
    }
    return { name, launch };
  });
}
