# Both programs in one image that holds nothing else but the roots of the web: no shell, no C library, no package to update.
#
#   docker build -t outrigger .
#   docker build --build-arg FEATURES=spiffe -t outrigger .        with identities from SPIRE (docs/identity.md)
#   docker build --build-arg TRAINED=no -t outrigger .             compiled once: on one core, or for another processor than this one
#   docker run outrigger --config /proxy.yaml                      the sidecar
#   docker run --entrypoint /outrigger outrigger serve ...         the control API and the operator's tool
#
# There is no HEALTHCHECK: it would run a command inside the container, and there is none to run. Ask the sidecar over
# HTTP instead, at the scrape port: GET /ready answers 200 or 503 with a sentence.
#   - compose and ECS: a sidecar shares the network of its application, so the application's container asks
#     (`curl -f http://127.0.0.1:9901/ready`); deploy/compose.yaml does so.
#   - Kubernetes and load balancers: an httpGet probe on port 9901, path /ready.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Linked statically. --target is named although it is the host's, because only then are build scripts and procedural
# macros, which must stay dynamic, built without these flags. uname is that of the image's platform, so that
# `docker buildx build --platform linux/amd64,linux/arm64` builds each for itself. Names still resolve: glibc has had
# /etc/hosts and DNS built in since 2.34, so a static program needs no library of the system for them.
ENV RUSTFLAGS="-C target-feature=+crt-static"
# Cargo features beyond the default ones.
ARG FEATURES=
# `yes`: compiled twice, the second time by what the programs were seen doing under load (bench/release), which takes a fifth of the
# CPU from a request by HTTP/2. It needs two cores, and to run what it builds.
ARG TRAINED=yes
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    target="$(uname -m)-unknown-linux-gnu" \
    && if [ "$TRAINED" = yes ]; then \
        bench/release --target "$target" --features "$FEATURES" && built=target/trained; \
    else \
        cargo build --release --locked --target "$target" --features "$FEATURES" --bin outrigger-proxy --bin outrigger \
        && built="target/$target/release"; \
    fi \
    && mkdir -p /out/data \
    && cp "$built/outrigger-proxy" "$built/outrigger" /out/

FROM scratch
COPY --from=build /out/outrigger-proxy /out/outrigger /
# The roots of the web, for backends with `tls: { roots: system }`. As old as this image: to have others, mount a bundle over
# it or name one in SSL_CERT_FILE.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
# Where the control API keeps its store (--data) and a sidecar its last good configuration (--last-good), writable for
# the user below: mount a volume over it to keep them.
COPY --from=build --chown=65532:65532 /out/data /data
# "nonroot" of the distroless images. Our ports are above 1024, so no capability is needed.
USER 65532:65532
# 15000 inbound, 15001 outbound, 9901 scrape, 9902 admin (sidecar); 9900 control API.
EXPOSE 15000 15001 9900 9901 9902
ENTRYPOINT ["/outrigger-proxy"]
