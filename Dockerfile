# docker build -t llmspell .
# docker run -p 8000:8000 llmspell                                        the bundled demonstration model
# docker run -p 8000:8000 -v ./models:/models:ro llmspell \
#     llmspell serve --host 0.0.0.0 --model /models/model.gguf            your own
FROM python:3.12-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
# Only what decides which packages are installed: changes of the code do not compile llama.cpp again.
COPY pyproject.toml README.md LICENSE requirements.txt requirements-build.txt ./
COPY tools/setup tools/setup
COPY server/__init__.py server/__init__.py
# The image must run on other processors than the one that builds it.
ARG CMAKE_ARGS="-DGGML_NATIVE=OFF"
ENV UV_LINK_MODE=copy
RUN --mount=type=cache,target=/root/.cache/uv tools/setup

FROM python:3.12-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 llmspell \
    && install --directory --owner llmspell /models
# The same path as above: the environment refers to it.
WORKDIR /app
COPY --from=build /app /app
COPY server server
COPY config.example.toml ./
ENV PATH=/app/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 LLMSPELL_STORE__MODELS_DIR=/models
USER llmspell
# what is pulled outlives the container
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
CMD ["llmspell", "serve", "--host", "0.0.0.0", "--demo"]
