# syntax=docker/dockerfile:1
# Rempart on the CPU: built where there are compilers, run where there are none.
#
#   docker build -t rempart .
#   docker run --read-only --cap-drop ALL --security-opt no-new-privileges -p 127.0.0.1:8080:8080 \
#     -v "$PWD/models:/models:ro" -v rempart:/var/lib/rempart \
#     rempart serve /models/model.gguf --bind 0.0.0.0:8080 --allow-remote
#
# One image serves every processor of its architecture: the kernels for its instructions are chosen at start.
# `scripts/image` runs these steps in a Debian root of its own, without a container engine, and asks the server something.

ARG RUST_VERSION=1.95.0
ARG DEBIAN_VERSION=bookworm

FROM rust:${RUST_VERSION}-slim-${DEBIAN_VERSION} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# g++ builds oniguruma (inside the tokenizer). Package versions are not pinned: the mirrors drop old ones, so a pin would
# break the build instead of steadying it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential ca-certificates pkg-config \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --package rempart \
    && install -D --mode=0755 --strip target/release/rempart /out/rempart

FROM debian:${DEBIAN_VERSION}-slim AS run

# curl is for the health check, ca-certificates for `rempart pull`.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/rempart --shell /usr/sbin/nologin rempart \
    && install --directory --owner=rempart --group=rempart /models

COPY --from=build /out/rempart /usr/local/bin/rempart
COPY LICENSE /usr/share/doc/rempart/LICENSE

USER 10001
WORKDIR /var/lib/rempart
# Models, and what is kept: the database, with --database /var/lib/rempart/rempart.db.
VOLUME ["/models", "/var/lib/rempart"]
EXPOSE 8080
# SIGTERM drains: running answers are finished before the process ends.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["curl", "--silent", "--show-error", "--fail", "--output", "/dev/null", "http://127.0.0.1:8080/livez"]
ENTRYPOINT ["/usr/local/bin/rempart"]
CMD ["--help"]
