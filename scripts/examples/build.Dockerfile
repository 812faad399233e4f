# The build host: compiles for any GPU of `aot targets`, and needs none. From the root of a checkout:
#   docker build -f scripts/examples/build.Dockerfile -t me/aot:build .
#   docker run --rm -v aot:/store -e HF_TOKEN me/aot:build build pixart-alpha --gpu h200 --dtype bfloat16 --scope regional
# Jobs of the Hub take it too: `--on hf-jobs --image me/aot:build` of a matrix.
FROM python:3.11-slim-bookworm

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# torch is the ordinary wheel, which has CUDA's compiler in it; the headers are those of its own packages
# hadolint ignore=DL3013
RUN --mount=type=bind,target=/src,rw pip install --no-cache-dir /src uv

ENV AOT_HOME=/store
VOLUME /store
ENTRYPOINT ["aot"]
CMD ["--help"]
