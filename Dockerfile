# The agent, without an engine: linux/amd64 and linux/arm64.
#
# The base is pinned by a tag that receives security fixes. A digest is better where builds must repeat
# byte for byte, but it belongs to whoever mirrors the base: --build-arg BASE=python@sha256:...
# tools/check_image.py runs the RUN lines of the build stage on a plain machine; it moves PREFIX and WORK.
ARG BASE=python:3.12-slim-trixie

FROM ${BASE} AS build
ARG PREFIX=/opt/model-sidecar
ARG WORK=/src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
WORKDIR ${WORK}

# Two environments: the one that ships has no pip and nothing that only builds.
COPY requirements-build.lock ./
RUN python -m venv --without-pip "${PREFIX}" \
 && python -m venv "${WORK}/tools" \
 && tools/bin/pip install --require-hashes --only-binary :all: -r requirements-build.lock

COPY requirements.lock ./
RUN tools/bin/pip --python "${PREFIX}/bin/python" install --no-compile \
      --require-hashes --only-binary :all: -r requirements.lock

COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY sidecar sidecar
COPY adapters adapters
RUN tools/bin/pip wheel --no-build-isolation --no-deps --wheel-dir dist . \
 && tools/bin/pip --python "${PREFIX}/bin/python" install --no-compile --no-index --no-deps dist/*.whl

# Tests that packages ship are never run here. The byte code is made now, because a read-only root file
# system cannot keep any, and is not checked against its source at every start. The blocking
# Kubernetes client gets none: only its asynchronous twin is imported.
RUN find "${PREFIX}/lib" -depth -type d -name tests -exec rm -rf {} + \
 && "${PREFIX}/bin/python" -m compileall -q -j 0 --invalidation-mode unchecked-hash \
      -x '/kubernetes/client/(api|models)/' "${PREFIX}/lib"

FROM ${BASE}
ARG PREFIX=/opt/model-sidecar
ARG VERSION=unknown
LABEL org.opencontainers.image.title="model-sidecar" \
      org.opencontainers.image.description="Edit a ConfigMap: every inference pod holds exactly those models and LoRAs." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# The base's own pip would only be something to attack, and to scan. The directory is the default store:
# a new volume mounted there takes its owner. The base's openssl makes the certificate of a self-signed
# webhook: a base without it shall fail here.
RUN python -m pip uninstall --yes --quiet --root-user-action=ignore pip \
 && install --directory --owner=65532 --group=65532 /var/lib/model-sidecar \
 && openssl version
COPY --from=build ${PREFIX} ${PREFIX}
# Nothing is written outside the mounted store and /tmp: run it with a read-only root file system.
ENV PATH=${PREFIX}/bin:${PATH} HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# A number, so that the kubelet can see that runAsNonRoot holds.
USER 65532:65532
EXPOSE 9110
ENTRYPOINT ["model-sidecar"]
CMD ["run"]
