# The image of API, worker and every other command. What it writes goes to /data and /tmp alone, so
# that it runs with a read-only root file system.
#
#   docker build -t label-studio-clip-backend .                                 CPU
#   docker build -t label-studio-clip-backend:cuda --build-arg TORCH_INDEX= .   CUDA

ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS dependencies

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /build

# What has no wheel is compiled here; the compiler stays behind.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*

RUN python -m venv /opt/clip-backend
ENV PATH=/opt/clip-backend/bin:$PATH

# Torch first: the largest part, and the one that changes least. From PyPI, an empty TORCH_INDEX, it
# comes with CUDA; torchvision's version follows from torch's.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=2.14
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==${TORCH}.*" torchvision

# The dependencies change more seldom than the code: pyproject.toml alone decides about this layer.
COPY pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"]["postgres"], sep="\n")' \
        > requirements.txt \
    && pip install --requirement requirements.txt

FROM dependencies AS wheel

COPY README.md LICENSE ./
COPY backend backend
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /wheel .

FROM python:${PYTHON}

LABEL org.opencontainers.image.title="label-studio-clip-backend" \
      org.opencontainers.image.description="A Label Studio backend that learns while people annotate images" \
      org.opencontainers.image.licenses="MIT"

# The folders exist and are clip's, so that volumes that are mounted there become clip's, too.
RUN groupadd --gid 1000 clip \
    && useradd --uid 1000 --gid clip --home-dir /data --no-create-home --shell /usr/sbin/nologin clip \
    && install --directory --owner clip --group clip /data /run/secrets

COPY --from=dependencies /opt/clip-backend /opt/clip-backend
ENV PATH=/opt/clip-backend/bin:$PATH
# Small, and all that a changed line of code changes.
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-cache-dir --no-deps /wheel/*.whl

# HOME is where weights are kept: /data/.cache, by Hugging Face and open_clip alike.
ENV HOME=/data \
    DATA_DIR=/data \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

USER 1000:1000
WORKDIR /data
VOLUME /data
EXPOSE 9090

# Up as soon as the process is: webhooks are taken while CLIP is still loaded.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + (os.environ.get('PORT') or '9090') + '/health', timeout=4)"]

ENTRYPOINT ["clip-backend"]
CMD ["up"]
