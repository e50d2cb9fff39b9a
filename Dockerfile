# A CPU:   docker build -t mini-infer:0.1.0 .
#            with --build-arg TORCH_INDEX=URL of torch's wheels without CUDA, a tenth of the size
# A GPU:   docker build -t mini-infer:0.1.0-cuda --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
# Then:    docker run --rm -p 127.0.0.1:8000:8000 mini-infer:0.1.0
#          docker run --rm --gpus all -p 127.0.0.1:8000:8000 mini-infer:0.1.0-cuda serve Qwen/Qwen3-0.6B --host 0.0.0.0
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# A base without Python is the CUDA one: Triton compiles its kernels' launchers with gcc while the server runs.
# hadolint ignore=DL3008
RUN if ! command -v python3 > /dev/null; then \
      apt-get update \
      && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc libc6-dev \
      && rm -rf /var/lib/apt/lists/*; \
    fi

FROM base AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python3 -m venv /opt/mini-infer
ENV PATH=/opt/mini-infer/bin:${PATH}
COPY constraints.txt ./
ARG TORCH_INDEX=
RUN PIP_EXTRA_INDEX_URL=${TORCH_INDEX} pip install --no-cache-dir -c constraints.txt torch
COPY pyproject.toml setup.py README.md LICENSE ./
COPY mini_infer mini_infer
# The CPU kernels are compiled for the machine that builds; an image runs on others. v3 is AVX2, 2013 and later.
ARG MARCH=x86-64-v3
RUN MINI_INFER_MARCH=${MARCH} pip install --no-cache-dir -c constraints.txt '.[serve,hub,otel]'

FROM base
RUN useradd --system --uid 10001 --user-group --create-home mini-infer \
    && install -d -o mini-infer -g mini-infer /cache
COPY --from=build /opt/mini-infer /opt/mini-infer
ENV PATH=/opt/mini-infer/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /cache
WORKDIR /home/mini-infer
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["mini-infer"]
CMD ["serve", "--host", "0.0.0.0"]
