# syntax=docker/dockerfile:1
# Two stages: wheels are built in the first, the second holds only what runs. BASE may be any image with Python >= 3.11.
ARG BASE=python:3.13-slim
ARG EXTRAS=embedded,postgres,otel

FROM ${BASE} AS build
ARG EXTRAS
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY gateway ./gateway
RUN python3 -m venv /opt/gateway \
 && /opt/gateway/bin/pip install --no-cache-dir --disable-pip-version-check ".[${EXTRAS}]"

FROM ${BASE}
LABEL org.opencontainers.image.title="hyperleap-gateway" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/gateway /opt/gateway
# Nothing of the root file system is written to: state is the volume, sockets and scratch files are in /tmp.
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_INTERNAL_HOST=0.0.0.0 \
    GATEWAY_DATA_DIR=/var/lib/hyperleap-gateway
RUN useradd --uid 65532 --user-group --no-create-home --shell /usr/sbin/nologin gateway \
 && install -d -o gateway -g gateway -m 0700 /var/lib/hyperleap-gateway
USER 65532:65532
VOLUME ["/var/lib/hyperleap-gateway", "/tmp"]
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=2s --start-period=10s \
  CMD ["python3", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:%s/livez' % os.environ.get('GATEWAY_INTERNAL_PORT', '9090'), timeout=1)"]
ENTRYPOINT ["hyperleap-gateway"]
CMD ["serve"]
