# The task app alone: the core without extras, so no torch.
#   docker build --tag crafter-pipeline-task-app .
#   docker run --rm --publish 127.0.0.1:8001:8001 --env ENVIRONMENT_API_KEY crafter-pipeline-task-app
FROM python:3.11-slim-bookworm AS build

WORKDIR /build
RUN python -m venv /opt/task-app
ENV PATH=/opt/task-app/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The dependencies first: they change less often than the code.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > dependencies.txt \
    && pip install --constraint constraints.txt --requirement dependencies.txt

COPY README.md LICENSE ./
COPY crafter_pipeline crafter_pipeline
COPY task_app task_app
COPY train_app train_app
COPY flows flows
COPY tasks tasks
RUN pip install --no-deps .

FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 1000 player && install --directory --owner player --mode 0777 /traces
COPY --from=build /opt/task-app /opt/task-app
ENV PATH=/opt/task-app/bin:$PATH PYTHONUNBUFFERED=1 HOME=/home/player MPLCONFIGDIR=/tmp
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
