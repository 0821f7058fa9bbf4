# One image for the API (`perdure serve`) and for workers (`perdure worker`).
FROM python:3.13-slim AS build
RUN pip install --no-cache-dir 'uv>=0.8'
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /app
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-dev --no-install-project
COPY server ./server
COPY graphs ./graphs
COPY langgraph.json langgraph.crm.json ./
RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-dev

FROM python:3.13-slim
RUN useradd --create-home --uid 10001 perdure && install -d -o perdure /data /sandboxes
COPY --from=build /app /app
WORKDIR /app
# Without DATABASE_URL the embedded PostgreSQL writes to /data: mount a volume there. The coding agent of the
# patterns writes to CODING_SANDBOX, a folder that all workers must share, such as a volume at /sandboxes.
ENV PATH=/app/.venv/bin:$PATH PERDURE_DATA_DIR=/data PERDURE_HOST=0.0.0.0 PYTHONUNBUFFERED=1
USER perdure
VOLUME /data
EXPOSE 2024
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:2024/ok', timeout=2)"]
ENTRYPOINT ["perdure"]
CMD ["serve"]
