# Two images from this checkout.
#
# The task app alone: the core without extras, so no torch.
#   docker build --tag crafter-pipeline-task-app .
#   docker run --rm --publish 127.0.0.1:8001:8001 --env ENVIRONMENT_API_KEY crafter-pipeline-task-app
#
# Everything that Prefect runs, for compose.yaml and docker pools; EXTRAS=train adds torch, for whoever trains.
#   docker build --target pipeline --tag crafter-pipeline .
#   docker build --target pipeline --build-arg EXTRAS=train --tag crafter-pipeline:train .
FROM python:3.11-slim-bookworm AS base

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

FROM base AS checkout

WORKDIR /app
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# The dependencies first: they change less often than the code.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > /tmp/dependencies.txt \
    && pip install --constraint constraints.txt --requirement /tmp/dependencies.txt

COPY README.md LICENSE ./
COPY crafter_pipeline crafter_pipeline
COPY task_app task_app
COPY train_app train_app
COPY flows flows
COPY tasks tasks

FROM checkout AS pipeline

# The checkout stays: Prefect reads its settings and prefect.yaml from the folder it is started in.
ARG EXTRAS=""
RUN pip install --constraint constraints.txt --editable ".${EXTRAS:+[$EXTRAS]}" \
    && useradd --create-home --uid 1000 pipeline \
    && install --directory --owner pipeline /data traces ft_data
COPY prefect.yaml ./
COPY configs configs
ENV HOME=/home/pipeline MPLCONFIGDIR=/tmp PREFECT_HOME=/data/prefect \
    CRAFTER_PIPELINE_RUNS=/data/runs CRAFTER_PIPELINE_DATA=/data/train_data CRAFTER_PIPELINE_STATE=/home/pipeline/state
USER pipeline

FROM checkout AS build

RUN pip install --no-deps .

FROM base

RUN useradd --create-home --uid 1000 player && install --directory --owner player --mode 0777 /traces
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH HOME=/home/player MPLCONFIGDIR=/tmp
USER player
WORKDIR /home/player
VOLUME /traces
EXPOSE 8001

# Of the default port: with another one add --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8001/livez', timeout=2)"]

# Without arguments it serves Crafter to whoever knows ENVIRONMENT_API_KEY; without a key it refuses to start.
ENTRYPOINT ["python", "-m", "task_app"]
CMD ["grpo-crafter", "--host", "0.0.0.0", "--port", "8001", "--trace", "/traces"]
