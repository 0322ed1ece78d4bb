# The image of Larder: the program, and the file system tools that it runs. Nothing else is in
# it, no shell either. `cargo xtask image` builds the same without Docker (docs/install.md).
#
#   docker build --tag registry.example.org/larder:0.1.0 .
ARG DEBIAN=bookworm

FROM rust:1.95-${DEBIAN} AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --package larder && cp target/release/larder /larder

FROM debian:${DEBIAN}-slim AS tools
COPY deploy/image/packages deploy/image/collect.sh /
RUN apt-get update \
    && apt-get install --yes --no-install-recommends $(cat /packages) \
    && sh /collect.sh / /out

FROM scratch
COPY --from=tools /out /
COPY --from=build /larder /usr/bin/larder
LABEL org.opencontainers.image.title="Larder" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/larder-dev/larder"
ENV PATH=/usr/sbin:/usr/bin
ENTRYPOINT ["/usr/bin/larder"]
CMD ["serve"]
