// The exports of acpx that the host uses.

export { BUILT_IN_AGENT_PACKAGES, createAgentRegistry } from 'acpx/agent-registry';
export { AcpxRuntime, createFileSessionStore } from 'acpx/runtime';
