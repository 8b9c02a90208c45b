# syntax=docker/dockerfile:1
# Build: docker build -t shuanglu .
# Run:   docker run --network host -v shuanglu-data:/data --stop-timeout 60 shuanglu
# Host networking lets the server see the addresses clients must be told. Without it publish 8443/tcp and 7882-…/udp
# and set SHUANGLU__MEDIA__ADVERTISED=[the host's address].

FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python -m venv /opt/shuanglu
ENV PATH=/opt/shuanglu/bin:$PATH PIP_NO_CACHE_DIR=1
# Dependencies first: this layer is rebuilt only when pyproject.toml changes.
COPY pyproject.toml ./
RUN python -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))" \
    > /tmp/requirements.txt \
 && pip install -r /tmp/requirements.txt
COPY . .
RUN pip install --no-deps .

FROM python:3.11-slim-bookworm
# libgcrypt seals five times as fast as the fallback; libssl3 has SM2.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgcrypt20 libssl3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin shuanglu \
 && install -d -o shuanglu -g shuanglu -m 0700 /data
COPY --from=build /opt/shuanglu /opt/shuanglu
ENV PATH=/opt/shuanglu/bin:$PATH PYTHONUNBUFFERED=1 SHUANGLU__DATA_DIR=/data
USER shuanglu
WORKDIR /data
VOLUME /data
EXPOSE 8443/tcp 7882-7897/udp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["mediaserver", "health"]
ENTRYPOINT ["mediaserver"]
CMD ["serve"]
